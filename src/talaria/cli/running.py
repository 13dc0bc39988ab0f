"""Commands that set a home up and run its services."""

import click

from talaria.cli.root import actor, load_config, main, open_home

_SERVICES = ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web")


@main.command()
@click.argument("services", nargs=-1, type=click.Choice(_SERVICES), metavar="[SERVICE]...")
@click.pass_context
def serve(context: click.Context, services: tuple[str, ...]) -> None:
    """
    Run all services, or those named, until told to stop.

    SERVICE is one of: receiver router processor dispatcher cleaner bookkeeper web. Each runs in a process of its
    own, and is started again when it dies.
    """
    from talaria import app  # as in open_home

    app.serve(load_config(context), tuple(dict.fromkeys(services)))


@main.command()
@click.pass_context
def init(context: click.Context) -> None:
    """
    Make the home, its keys and the ledger.

    Prints a one-time link for an administrator to sign in by. What is there already stays; a ledger of an older
    version is taken to this one.
    """
    config = load_config(context)
    code = open_home(config).set_up(actor=actor())
    scheme = "https" if config.web_tls_certificate else "http"
    click.echo(f"home    {config.home}")
    click.echo(f"spool   {config.spool}")
    click.echo(f"ledger  {open_home(config).ledger.name}")
    click.echo("")
    click.echo("Sign in once, within a day, while `talaria serve` runs:")
    click.echo(f"  {scheme}://{config.web_host}:{config.web_port}/login?link={code}")

"""Commands that set a home up and run its services."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from talaria.cli.choosing import span_option
from talaria.cli.root import actor, checked_home, load_config, main, open_home

if TYPE_CHECKING:
    from talaria import app

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
@click.option("--new-spool", is_flag=True, help="Take another spool in place of the home's own, which is lost.")
@click.pass_context
def init(context: click.Context, new_spool: bool) -> None:
    """
    Make the home, its keys and the ledger.

    Prints a one-time link for an administrator to sign in by. What is there already stays; for a ledger of an
    older version there is `talaria db migrate`.
    """
    config = load_config(context)
    code = open_home(config).set_up(actor=actor(), new_spool=new_spool)
    scheme = "https" if config.web_tls_certificate else "http"
    click.echo(f"home    {config.home}")
    click.echo(f"spool   {config.spool}")
    click.echo(f"ledger  {open_home(config).ledger.name}")
    click.echo("")
    click.echo("Sign in once, within a day, while `talaria serve` runs:")
    click.echo(f"  {scheme}://{config.web_host}:{config.web_port}/login?link={code}")


#: For every receiver to have seen that it is to take no more.
_SEEN_SECONDS = 3.0
_LOOK_SECONDS = 0.5


@main.command()
@click.option("--end", is_flag=True, help="End it: everything goes on.")
@click.option("--timeout", help="Give up waiting after so long, as 10m; what was drained stays so.")
@click.option("--reason", default="", help="Why, for whoever looks.")
@click.pass_context
def drain(context: click.Context, end: bool, timeout: str | None, reason: str) -> None:
    """
    Accept nothing new, begin nothing more, and wait until what is active has ended.

    Then services can be stopped and nothing is interrupted. A full `talaria serve` that is started ends it.
    """
    longest = span_option(timeout)
    home = checked_home(context)
    if end:
        was = home.operations.undrain(actor=actor(), now=home.clock())
        click.echo("goes on" if was else "nothing was drained")
        return
    home.operations.drain(actor=actor(), reason=reason, now=home.clock())
    if not _wait_until_still(home, longest):
        click.echo("talaria: not drained yet; `talaria drain` waits on, `talaria drain --end` ends it", err=True)
        raise SystemExit(1)
    click.echo("drained: nothing is active; `talaria drain --end` or a full `talaria serve` lets everything go on")


def _wait_until_still(home: "app.Home", longest: timedelta | None) -> bool:
    """Whether nothing is active any more; says on stderr what is while it waits."""
    began, said = time.monotonic(), ""
    while True:
        active = {str(kind): count for kind, count in sorted(home.operations.active().items())}
        arriving = home.spool.arriving()
        parts = [f"{count} {kind}" for kind, count in (*active.items(), ("arriving", arriving)) if count]
        passed = time.monotonic() - began
        if not parts and passed >= _SEEN_SECONDS:
            return True
        if longest is not None and passed >= longest.total_seconds():
            return False
        if parts and (text := ", ".join(parts)) != said:
            click.echo(f"waiting for: {text}", err=True)
            said = text
        time.sleep(_LOOK_SECONDS)

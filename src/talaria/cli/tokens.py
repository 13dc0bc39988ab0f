"""Commands about API tokens."""

from datetime import UTC, datetime, timedelta

import click

from talaria.cli.printing import ago, print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, main
from talaria.model.errors import ConfigError


@main.group()
def token() -> None:
    """API tokens of an administrator."""


@token.command("create")
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is good.")
@click.pass_context
def token_create(context: click.Context, name: str, days: int) -> None:
    """Make a token and print it, once."""
    home = checked_home(context)
    secret = home.access.issue(
        home.TOKEN, name=name, actor=actor(), now=datetime.now(UTC), lifetime=timedelta(days=days)
    )
    click.echo(secret)


@token.command("list")
@json_option
@click.pass_context
def token_list(context: click.Context, as_json: bool) -> None:
    """Tokens by name; never the tokens themselves."""
    home = checked_home(context)
    found = home.access.list(home.TOKEN)
    if as_json:
        print_json(found)
        return
    rows = [(c.name, ago(c.created), c.expires.strftime("%Y-%m-%d") if c.expires else "never") for c in found]
    print_table(("NAME", "MADE", "EXPIRES"), rows, empty="No token. Make one:  talaria token create NAME")


@token.command("revoke")
@click.argument("name")
@click.pass_context
def token_revoke(context: click.Context, name: str) -> None:
    """Make all tokens of a name worthless."""
    home = checked_home(context)
    count = home.access.revoke(kind=home.TOKEN, name=name, actor=actor(), now=datetime.now(UTC))
    if not count:
        raise ConfigError(f"no token is called '{name}'; `talaria token list` shows what there is")
    click.echo(f"revoked {count}")

"""Commands about API tokens."""

from datetime import UTC, datetime, timedelta

import click

from talaria.cli.printing import ago, print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, main
from talaria.model.errors import ConfigError
from talaria.model.forms import check_name

#: What a token may be good for, the least first; the names of `talaria.store.access.Scope`.
_SCOPES = ("view", "operate", "administer")


@main.group()
def token() -> None:
    """Tokens for programs that use the API."""


@token.command("create")
@click.argument("name")
@click.option(
    "--scope", type=click.Choice(_SCOPES), default="administer", show_default=True,
    help="view: to look. operate: also to act on studies and jobs, and to pause. administer: also the rulebook.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is good.")
@click.pass_context
def token_create(context: click.Context, name: str, scope: str, days: int) -> None:
    """Make a token and print it, once; what is done with it is written down as token:NAME."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"token: {error}") from error
    home = checked_home(context)
    secret = home.access.issue(
        home.TOKEN, name=name, actor=actor(), now=datetime.now(UTC), lifetime=timedelta(days=days),
        scope=home.SCOPE(scope),
    )  # fmt: skip
    click.echo(secret)


@token.command("list")
@json_option
@click.pass_context
def token_list(context: click.Context, as_json: bool) -> None:
    """Tokens by name, those that have expired too; never the tokens themselves."""
    home = checked_home(context)
    found = home.access.list(home.TOKEN)
    now = datetime.now(UTC)
    if as_json:
        print_json(
            [
                {
                    "name": c.name, "scope": c.scope, "created": c.created, "seen": c.seen, "expires": c.expires,
                    "expired": c.is_expired(now),
                }
                for c in found
            ]
        )  # fmt: skip
        return
    print_table(
        ("NAME", "SCOPE", "MADE", "SEEN", "EXPIRES"),
        [(c.name, c.scope, ago(c.created), ago(c.seen) if c.seen else "never", _end(c.expires, now)) for c in found],
        empty="No token. Make one:  talaria token create NAME",
    )


def _end(expires: datetime | None, now: datetime) -> str:
    if expires is None:
        return "never"
    return f"expired {ago(expires)}" if expires <= now else expires.strftime("%Y-%m-%d")


@token.command("revoke")
@click.argument("name")
@click.pass_context
def token_revoke(context: click.Context, name: str) -> None:
    """Make all tokens of a name worthless, and the sessions that were signed in with them."""
    home = checked_home(context)
    count = home.access.revoke(kind=home.TOKEN, name=name, actor=actor(), now=datetime.now(UTC))
    if not count:
        raise ConfigError(f"no token is called '{name}'; `talaria token list` shows what there is")
    click.echo(f"revoked {count}")

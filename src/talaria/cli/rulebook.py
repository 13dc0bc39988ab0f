"""Commands about the rulebook and its revisions."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talaria.cli.root import actor, checked_home, load_config, main, open_home
from talaria.model.errors import ConfigError

if TYPE_CHECKING:
    from talaria.model.rulebook import Rulebook


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.pass_context
def check(context: click.Context, file: Path | None) -> None:
    """
    Validate the configuration, or a rulebook FILE.

    Says what is wrong, where, and what to do.
    """
    if file is None:
        config = load_config(context)
        home = open_home(config)
        home.verify()
        book = home.rulebooks.of(home.revisions.latest())
        click.echo(f"configuration: good; home {config.home}; rulebook revision {book.number}: {_counted(book)}")
        return
    book = open_home(load_config(context)).parse(_text(file))
    _warn(book)
    click.echo(f"{file}: good: {_counted(book)}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--note", default="", help="Why, for the history.")
@click.option("--expect", type=int, help="The revision you began with; refused if another runs by now.")
@click.pass_context
def apply(context: click.Context, file: Path, note: str, expect: int | None) -> None:
    """
    Make the rulebook in FILE run, as a new revision.

    FILE may be - for standard input. Services take it up within a second or two.
    """
    home = checked_home(context)
    text = _text(file)
    book = home.parse(text)
    _warn(book)
    number = home.revisions.save(
        text,
        author=actor(),
        now=datetime.now(UTC),
        note=note,
        warnings=[str(w) for w in book.warnings],
        expected=expect,
    )
    click.echo(f"revision {number} runs: {_counted(book)}")


@main.command()
@click.option("--revision", type=int, help="Another one than the one that runs.")
@click.pass_context
def export(context: click.Context, revision: int | None) -> None:
    """Print the rulebook that runs, as it was written."""
    home = checked_home(context)
    click.echo(home.revisions.get(home.revisions.latest() if revision is None else revision).text, nl=False)


def _text(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _warn(book: "Rulebook") -> None:
    for warning in book.warnings:
        click.echo(f"warning: {warning}", err=True)


def _counted(book: "Rulebook") -> str:
    parts = (("rule", book.rules), ("target", book.targets), ("module", book.modules))
    return ", ".join(f"{len(items)} {name}{'' if len(items) == 1 else 's'}" for name, items in parts)

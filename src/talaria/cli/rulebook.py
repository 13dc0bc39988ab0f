"""Commands about the rulebook and its revisions."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talaria.cli.printing import print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, load_config, main, open_home
from talaria.model.errors import ConfigError

if TYPE_CHECKING:
    from talaria.app import Home
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
        for (shelf, name), need in home.shelves.missing.items():
            click.echo(f"not there: {name} of {shelf}: {need}")
        return
    book = _understood(open_home(load_config(context)), file, _text(file))
    _warn(book, file)
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
    book = _understood(home, file, text)
    _warn(book, file)
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


@main.command()
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@json_option
@click.pass_context
def history(context: click.Context, limit: int, as_json: bool) -> None:
    """Revisions of the rulebook, the newest first: when, who, why."""
    page = checked_home(context).revisions.list(limit=limit)
    if as_json:
        print_json({"items": page.items, "next": page.next})
        return
    print_table(
        ("REVISION", "WHEN", "WHO", "WARNINGS", "NOTE"),
        [
            (r.number, f"{r.created.astimezone():%Y-%m-%d %H:%M:%S}", r.author, len(r.warnings), r.note)
            for r in page.items
        ],
        empty="No revision yet. Save the first:  talaria apply FILE",
    )
    if page.next is not None:
        click.echo(f"(there are more; --limit {2 * limit} shows twice as many)")


@main.command()
@click.argument("before", metavar="A", type=click.IntRange(min=1))
@click.argument("after", metavar="B", type=click.IntRange(min=1))
@click.pass_context
def diff(context: click.Context, before: int, after: int) -> None:
    """How revision B of the rulebook differs from revision A."""
    for line in checked_home(context).revisions.diff(before, after).splitlines():
        click.echo("".join(char if char.isprintable() or char == "\t" else "?" for char in line))


@main.command()
@click.argument("number", metavar="N", type=click.IntRange(min=1))
@click.option("--expect", type=int, help="The revision you saw run; refused if another runs by now.")
@click.pass_context
def rollback(context: click.Context, number: int, expect: int | None) -> None:
    """
    Make the rulebook of revision N run again, as a new revision.

    It is checked anew: what this installation cannot understand is refused, and what runs stays.
    """
    home = checked_home(context)
    try:
        saved, book = home.revisions.roll_back(
            number, check=home.parse, author=actor(), now=datetime.now(UTC), expected=expect
        )
    except ConfigError as error:
        raise ConfigError(_named(Path(f"revision {number}"), str(error))) from error
    _warn(book, Path(f"revision {saved}"))
    click.echo(f"revision {saved} runs, with the text of revision {number}: {_counted(book)}")


def _text(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _understood(home: "Home", file: Path, text: str) -> "Rulebook":
    """
    The rulebook of a file.

    Raises:
        ConfigError: Each thing that is wrong with it, with the file's name.
    """
    try:
        return home.parse(text)
    except ConfigError as error:
        raise ConfigError(_named(file, str(error))) from error


def _named(file: Path, message: str) -> str:
    """A message of several problems, each on a line of its own that names the file; what belongs to one is indented."""
    return "\n".join(line if line.startswith(" ") else f"{_shown(file)}: {line}" for line in message.splitlines())


def _shown(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _warn(book: "Rulebook", file: Path) -> None:
    for warning in book.warnings:
        click.echo(f"warning: {_named(file, str(warning))}", err=True)


def _counted(book: "Rulebook") -> str:
    parts = (("rule", book.rules), ("target", book.targets), ("module", book.modules))
    return ", ".join(f"{len(items)} {name}{'' if len(items) == 1 else 's'}" for name, items in parts)

"""The command that takes files into the spool: `import`."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talaria.cli.printing import print_json
from talaria.cli.root import actor, json_option, load_config, main, open_home
from talaria.model.dicom import AETitle
from talaria.model.errors import ConfigError, LedgerAway

if TYPE_CHECKING:
    from talaria import app
    from talaria.services.importer import ImportTally

_PROGRESS_SECONDS = 5.0


@main.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--rule", default="", help="The rule that is to take them, whatever the others say.")
@click.option("--calling", default="IMPORT", show_default=True, metavar="AE", help="The AE title they come from.")
@json_option
@click.pass_context
def import_(context: click.Context, paths: tuple[Path, ...], rule: str, calling: str, as_json: bool) -> None:
    """
    Take files, folders, zip and tar archives or a CD into the spool, as if they had been sent.

    What is no DICOM instance (DICOMDIR included) is skipped and counted. Done again, what is there already is
    counted and nothing else.
    """
    home = open_home(load_config(context))
    is_away = _look(home)
    _check(home, rule, calling)
    began = datetime.now(UTC)
    tally = home.importer(rule=rule, calling_ae=calling, progress=_progress()).take(paths)
    seconds = (datetime.now(UTC) - began).total_seconds()
    if not is_away and not tally.waiting:
        home.operations.note("import", actor=actor(), now=home.clock(), rule=rule, calling_ae=calling, **_counts(tally))
    if as_json:
        print_json({**_counts(tally), "reasons": tally.reasons, "stopped": tally.stopped, "seconds": round(seconds, 3)})
    else:
        _tell(tally, seconds)
    if tally.refused or tally.stopped or not tally.taken:
        raise SystemExit(1)


def _look(home: "app.Home") -> bool:
    """Whether the ledger is away: then images are kept safe, and written down when it is back."""
    try:
        home.verify()
        home.rulebooks.refresh()
    except LedgerAway as error:
        click.echo(f"talaria: {error}; images are kept, and written down when it is back", err=True)
        return True
    return False


def _check(home: "app.Home", rule: str, calling: str) -> None:
    try:
        AETitle(calling)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    book = home.rulebooks.running()
    if rule and all(entry.name != rule for entry in book.rules):
        known = ", ".join(entry.name for entry in book.rules) or "none yet"
        raise ConfigError(f"rule '{rule}' is not in revision {book.number} of the rulebook; there are: {known}")


def _progress() -> "Callable[[ImportTally], None]":
    """Says every few seconds how far it is, on stderr."""
    due = time.monotonic() + _PROGRESS_SECONDS

    def say(tally: "ImportTally") -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _PROGRESS_SECONDS
            click.echo(f"{tally.taken} images, {tally.size_bytes / 1e9:.1f} GB; skipped {tally.skipped}", err=True)
            sys.stderr.flush()

    return say


def _counts(tally: "ImportTally") -> dict[str, int]:
    names = ("new", "known", "repeat", "conflict")
    return {
        "taken": tally.taken, **{name: tally.findings.get(name, 0) for name in names}, "waiting": tally.waiting,
        "skipped": tally.skipped, "refused": tally.refused,
    }  # fmt: skip


def _tell(tally: "ImportTally", seconds: float) -> None:
    for reason in tally.reasons:
        click.echo(f"talaria: {reason}", err=True)
    if tally.refused > len(tally.reasons):
        click.echo(f"talaria: and {tally.refused - len(tally.reasons)} more were refused", err=True)
    words = {
        "repeat": "were here already",
        "conflict": "have other content than before",
        "waiting": "are not indexed yet",
    }
    counts = _counts(tally)
    rest = "".join(f", {counts[name]} {said}" for name, said in words.items() if counts[name])
    click.echo(
        f"took {tally.taken} images{rest}; refused {tally.refused}, skipped {tally.skipped} in {seconds:.1f} s"
    )  # fmt: skip
    if tally.stopped:
        click.echo(f"talaria: stopped: {tally.stopped}; make room, and begin again: the rest is taken then", err=True)

"""Commands about the ledger itself: `db backup`, `db restore`, `db migrate` and what goes with them."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talaria.cli.printing import print_json, print_table
from talaria.cli.root import actor, checked_home, json_option, load_config, main
from talaria.model.errors import Refused

if TYPE_CHECKING:
    from talaria import app
    from talaria.store.reconciling import Compared

_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@main.group()
def db() -> None:
    """Look after the ledger: backups, upgrades, damage."""


class _Progress:
    """Says on stderr how far it is, once a second at most."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, count: int) -> None:
        """So many are through."""
        if time.monotonic() - self._said >= 1:
            self._said = time.monotonic()
            click.echo(f"  {what}: {count}", err=True)


@db.command()
@_file
@json_option
@click.pass_context
def backup(context: click.Context, file: Path, as_json: bool) -> None:
    """
    Back the ledger up into a new FILE, while work goes on.

    One state of it, whole or not at all; can be restored into SQLite and PostgreSQL alike. The images are not in it,
    nor is the secret key file: keep a copy of both.
    """
    from talaria import upkeep  # as in open_home

    began = time.monotonic()
    home = upkeep.open_home(load_config(context))
    manifest = upkeep.back_up(home, file, progress=_Progress())
    size, seconds = file.stat().st_size, time.monotonic() - began
    if as_json:
        fields = {**manifest.model_dump(mode="json"), "rows": manifest.rows, "size_bytes": size, "seconds": seconds}
        print_json(fields)
        return
    click.echo(f"{file}: {manifest.rows} rows, {_megabytes(size)}, {seconds:.1f} s")
    click.echo(f"ledger {manifest.identity}, schema {manifest.step}, as of {upkeep.in_words(manifest.made)}")
    click.echo(f"not in it: {'; '.join(manifest.not_in_it)}")


@db.command("show")
@_file
@json_option
def show(file: Path, as_json: bool) -> None:
    """Look at a backup, and check that all of it can be read."""
    from talaria.store.backup import Backup  # as in open_home

    with Backup.open(file) as opened:
        for name in opened.manifest.tables:
            for _ in opened.rows(name):
                pass
        manifest = opened.manifest
    if as_json:
        print_json({**manifest.model_dump(mode="json"), "rows": manifest.rows})
        return
    click.echo(f"ledger {manifest.identity}, schema {manifest.step}, written by Talaria {manifest.talaria}")
    click.echo(f"as of {manifest.made:%Y-%m-%d %H:%M:%S %Z}, from {manifest.database}")
    click.echo(f"not in it: {'; '.join(manifest.not_in_it)}\n")
    print_table(("TABLE", "ROWS"), [(name, table.rows) for name, table in manifest.tables.items()])
    click.echo("\nall of it can be read, and is as it was written")


@db.command()
@_file
@click.option("--replace", is_flag=True, help="Set a ledger that has studies, or is damaged, aside; it is not deleted.")
@json_option
@click.pass_context
def restore(context: click.Context, file: Path, replace: bool, as_json: bool) -> None:
    """
    Put the backup in FILE in place of the ledger.

    Stop the services first. The spool is compared with it. Whole or not at all. What may have been delivered since
    the backup was made is not sent again by itself: it waits for you, and the table says how much.
    """
    from talaria import upkeep  # as in open_home
    from talaria.store.backup import Backup

    home = upkeep.open_home(load_config(context))
    with Backup.open(file) as opened:
        made = upkeep.in_words(opened.manifest.made)
        found, compared = upkeep.restore_from(
            home, opened, replace=replace, actor=actor(), progress=_Progress()
        )  # fmt: skip
    if as_json:
        print_json({"made": made, "restored": found, "compared": compared})
        return
    click.echo(f"restored: {found.studies} studies, as of {made}")
    if found.set_aside:
        click.echo(f"the ledger before it is now {found.set_aside}")
    click.echo("")
    held = ("deliveries that were not over: held", found.deliveries_held, "talaria db release --deliveries")
    _print_found([held, *_found(compared)])


@db.command()
@click.option("--replace", is_flag=True, help="Even if the ledger is whole; it is set aside, not deleted.")
@json_option
@click.pass_context
def rebuild(context: click.Context, replace: bool, as_json: bool) -> None:
    """
    Make a damaged ledger anew.

    Stop the services first; a backup is better: `talaria db restore`. The rulebook is the one that the home keeps.
    The damaged file is set aside. Every image of the spool is taken in again, and waits for you, since it may have
    been delivered.
    """
    from talaria import upkeep  # as in open_home

    home = upkeep.open_home(load_config(context))
    found = upkeep.rebuild(home, replace=replace, actor=actor(), progress=_Progress())
    if as_json:
        print_json(found)
        return
    if found.set_aside:
        click.echo(f"the ledger before it is now {found.set_aside}")
    if found.revision:
        click.echo(f"rulebook: revision {found.revision}, as the home kept it")
    else:
        click.echo("rulebook: none was kept; run `talaria apply FILE` before you release anything")
    click.echo("tokens are gone with it: `talaria init` prints a link to sign in by\n")
    _print_found(_found(found.compared))


@db.command()
@json_option
@click.pass_context
def compare(context: click.Context, as_json: bool) -> None:
    """
    Compare the spool with the ledger.

    For when either came from a backup. Stop the services first. What the ledger does not know is taken in, and waits
    for you; rows whose file is gone say so. Also ends what an interrupted `db restore` or `db rebuild` left.
    """
    from talaria import upkeep  # as in open_home

    found = upkeep.compare(upkeep.open_home(load_config(context)), progress=_Progress())
    if as_json:
        print_json(found)
    else:
        _print_found(_found(found))


@db.command()
@click.option("--deliveries", is_flag=True, help="Send what is missing at each target.")
@click.option("--series", "with_series", is_flag=True, help="Ask the rules about every series that waits.")
@click.pass_context
def release(context: click.Context, deliveries: bool, with_series: bool) -> None:
    """
    Let go on what a restoration holds.

    For single ones: `talaria jobs release`, `talaria studies release`, `talaria studies route`.
    """
    from talaria import upkeep  # as in open_home

    if not (deliveries or with_series):
        raise click.UsageError("say what: --deliveries, --series, or both")
    home = checked_home(context)
    if deliveries:
        count = upkeep.release_deliveries(home.ledger, now=datetime.now(UTC), actor=actor())
        click.echo(f"deliveries released: {count}")
    if with_series:
        click.echo(f"series released: {_release_series(home)}")


def _release_series(home: "app.Home") -> int:
    from talaria import upkeep  # as in open_home
    from talaria.store.operations import Operations

    operations, count, last = Operations(home.ledger, home.rulebooks), 0, ""
    while uids := upkeep.studies_held(home.ledger, after=last):
        for uid in uids:
            try:
                count += len(operations.release(uid, actor=actor(), now=datetime.now(UTC)))
            except Refused as error:
                click.echo(f"talaria: {error}", err=True)
        last = uids[-1]
    return count


@db.command()
@click.option("--no-backup", is_flag=True, help="Without a backup before; only if you have made one.")
@click.pass_context
def migrate(context: click.Context, no_backup: bool) -> None:
    """
    Take the ledger of an older version to this one.

    Stop the services first, on every host. Makes a backup in the home before. Whole or not at all: interrupted, the
    ledger is as it was.
    """
    from talaria import upkeep  # as in open_home

    home = upkeep.open_home(load_config(context))
    found = upkeep.migrate(home, with_backup=not no_backup, progress=_Progress())
    if found.before == found.after:
        click.echo(f"ledger {home.ledger.name}: is at schema {found.after} already; nothing was done")
        return
    if found.backup is not None:
        click.echo(f"backup  {found.backup}")
    click.echo(f"ledger {home.ledger.name}: schema {found.before} is now {found.after}")


# -- tables --


def _found(compared: "Compared") -> Sequence[tuple[str, int, str]]:
    """What the comparison found: the thing, how many, what a person does about it."""
    return (
        ("files in the spool", compared.files, ""),
        ("files that the ledger did not know: taken in", compared.taken_in, ""),
        ("series that wait for you: held", compared.series_held, "talaria db release --series"),
        ("results of modules that it did not know: moved to odd/", compared.results, ""),
        ("copies of what it knows: moved to odd/", compared.repeats, ""),
        ("files that are no instances: moved to odd/", compared.unreadable, ""),
        ("images whose file is gone: marked as dropped", compared.lost, "have them sent again, if they are wanted"),
        ("images in other spools: not looked at", compared.elsewhere, "talaria db compare, on their host"),
    )


def _print_found(rows: Sequence[tuple[str, int, str]]) -> None:
    found = [row for row in rows if row[1]]
    print_table(("FOUND", "COUNT", "WHAT YOU CAN DO"), found, empty="Nothing waits for you, and the spool is empty.")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"

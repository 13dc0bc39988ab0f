"""What is done to a home's ledger while no service runs: migrated, restored, made anew, compared with its spool."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from talaria.app import Home
from talaria.exclusion import upkeep
from talaria.model.config import Config
from talaria.model.errors import ConfigError, LedgerAway
from talaria.model.header import TagList
from talaria.services.loop import wall_clock
from talaria.services.receiver import shortest_quiet
from talaria.store.backup import Backup, Manifest, Progress, stamp, write_backup
from talaria.store.ledger import UNHURRIED
from talaria.store.reconciling import Compared, Comparison, comparing
from talaria.store.restoring import (
    Restored,
    count_studies,
    file_of,
    in_words,
    make_anew,
    refuse_running,
    release_deliveries,
    restore,
    studies_held,
)  # fmt: skip
from talaria.store.schema import REVISION
from talaria.store.workers import Process

__all__ = [
    "Migrated", "Rebuilt", "back_up", "compare", "in_words", "migrate", "open_home", "rebuild", "release_deliveries",
    "restore_from", "studies_held",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """What was done to a ledger's schema."""

    before: str
    after: str
    backup: Path | None
    """Made before; None where none was wanted or nothing was to be done."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What was put in place of a damaged ledger."""

    set_aside: str
    revision: int
    """Of the rulebook found in the home; 0: there was none."""
    compared: Compared


def open_home(config: Config) -> Home:
    """The home, whatever its state; its database may take its time."""
    return Home(config, UNHURRIED)


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[datetime]:
    """
    Work on the ledger while no service does, here or on another host; gives the time.

    Raises:
        ConfigError: The home is not set up, or somebody works.
    """
    with upkeep(home.config.home):
        if not home.identity():
            raise ConfigError(f"home {home.config.home}: is not set up; run `talaria init` first")
        now = wall_clock()
        yield now


def back_up(home: Home, path: Path, *, progress: Progress) -> Manifest:
    """Write a backup of the home's ledger, whatever runs; see `write_backup`."""
    return write_backup(home.ledger, path, now=wall_clock(), progress=progress)


def migrate(home: Home, *, with_backup: bool, progress: Progress) -> Migrated:
    """
    Take the ledger's schema to this version's, after a backup beside the home's other files.

    Raises:
        ConfigError: Services work on it, or its schema is newer.
        NoRoom: The backup cannot be written; nothing was changed.
        LedgerAway: It cannot be changed now; nothing was.
    """
    with _alone(home) as now:
        before = home.ledger.known_step()
        if before == REVISION:
            return Migrated(before=before, after=before, backup=None)
        refuse_running(home.ledger, now=now, host=Process.own().host)
        path = home.config.home / f"before-schema-{REVISION}-{stamp(now)}.backup" if with_backup else None
        if path is not None:
            write_backup(home.ledger, path, now=now, progress=progress)
        home.ledger.migrate(now=now)
        return Migrated(before=before, after=REVISION, backup=path)


def restore_from(
    home: Home, backup: Backup, *, replace: bool, actor: str, progress: Progress
) -> tuple[Restored, Compared]:
    """
    Put a backup in place of the home's ledger, and compare the spool with it.

    Args:
        home: Set up, of the ledger that the backup is of, or with an empty one.
        backup: Opened.
        replace: Whether a ledger that has studies may be set aside.
        actor: Who does it.
        progress: Told now and then.

    Raises:
        ConfigError: It must not be, or the backup is damaged; nothing was changed.
        LedgerAway: The database cannot take it; nothing was changed.
    """
    with _alone(home) as now:
        spool = home.spool
        _refuse_full(home, backup.manifest, replace=replace)
        with _unless_damaged(home):
            refuse_running(home.ledger, now=now, host=Process.own().host)
        if home.identity() != backup.manifest.identity:
            home.bind(backup.manifest.identity)  # first: if it ends here, the same command goes on
        found = restore(home.ledger, backup, spool=spool.name, now=now, actor=actor, progress=progress)
        return found, _compare(Home(home.config, home.bounds), now=now, progress=progress)


def _refuse_full(home: Home, manifest: Manifest, *, replace: bool) -> None:
    """
    See that nothing is replaced that was not meant.

    Raises:
        ConfigError: The ledger has studies, or is damaged, and *replace* was not said; or it is another site's.
    """
    is_ours = home.identity() == manifest.identity
    try:
        count = count_studies(home.ledger)
    except LedgerAway as error:
        if file_of(home.ledger) is None:
            raise
        if not replace:
            raise ConfigError(
                f"{error}; with --replace its file is set aside, and the backup takes its place"
            ) from error
        count = 1
    if count and not is_ours:
        raise ConfigError(
            f"the backup is of ledger {manifest.identity}, but home {home.config.home} belongs to {home.identity()}; "
            "for another site's backup make a new home with `talaria init`"
        )
    if count and not replace:
        raise ConfigError(
            f"ledger {home.ledger.name}: has studies; with --replace it is set aside, and the backup takes its place"
        )


@contextlib.contextmanager
def _unless_damaged(home: Home) -> Iterator[None]:
    """Where the ledger is a file that cannot be read, the lock on the home has to do."""
    try:
        yield
    except LedgerAway:
        if file_of(home.ledger) is None:
            raise


def rebuild(home: Home, *, replace: bool, actor: str, progress: Progress) -> Rebuilt:
    """
    Make the ledger anew from what is left: the spool, and the rulebook that the home keeps.

    Raises:
        ConfigError: The ledger is whole and has studies, and *replace* was not said; or services run.
        LedgerAway: The database cannot be used.
    """
    with _alone(home) as now:
        spool = home.spool
        if not replace and not home.ledger.is_damaged() and count_studies(home.ledger):
            raise ConfigError(
                f"ledger {home.ledger.name}: is whole and has studies; nothing need be rebuilt "
                "(with --replace it is set aside nevertheless)"
            )
        with _unless_damaged(home):
            refuse_running(home.ledger, now=now, host=Process.own().host)
        kept = home.rulebooks.kept()
        aside = make_anew(
            home.ledger, identity=home.identity(), spool=spool.name, rulebook=kept, now=now, actor=actor
        )  # fmt: skip
        compared = _compare(Home(home.config, home.bounds), now=now, progress=progress)
        return Rebuilt(set_aside=aside, revision=kept[0] if kept else 0, compared=compared)


def compare(home: Home, *, progress: Progress) -> Compared:
    """
    Compare spool and ledger: what an interrupted restoration left to do, or after the spool itself was restored.

    Raises:
        ConfigError: Services work on it, or the ledger is another's.
    """
    with _alone(home) as now:
        home.ledger.verify_schema()
        refuse_running(home.ledger, now=now, host=Process.own().host)
        return _compare(home, now=now, progress=progress)


def _compare(home: Home, *, now: datetime, progress: Progress) -> Compared:
    with contextlib.suppress(
        ConfigError
    ):  # the newest may name a plug that is gone: tags are recorded by the last good
        home.rulebooks.refresh()
    book = home.rulebooks.running()
    reason = comparing(home.ledger, home.spool.name) or f"found in the spool when it was compared on {in_words(now)}"
    comparison = Comparison(
        home.ledger, home.spool, wanted=TagList.of(book.recorded_names), quiet=shortest_quiet(book), reason=reason,
        now=now, progress=progress,
    )  # fmt: skip
    return comparison.run()

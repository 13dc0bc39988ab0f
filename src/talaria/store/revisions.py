"""The rulebook's revisions, as they were written."""

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
import structlog

from talaria.model.errors import ConfigError, LedgerAway, Overtaken, Refused
from talaria.model.rulebook import Rulebook, Shelves, parse
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.store.schema import revisions

log = structlog.get_logger()

_FOLLOW = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One saved state of the rulebook."""

    number: int
    text: str
    author: str
    created: datetime
    note: str
    warnings: tuple[str, ...]


class Revisions:
    """Numbered from 1; the highest runs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def latest(self) -> int:
        """The number of the running revision; 0 before the first."""
        with self._ledger.reading() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(revisions.c.number), 0))).scalar_one())

    def get(self, number: int) -> Revision:
        """
        One revision.

        Raises:
            Refused: There is none of that number.
        """
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(revisions).where(revisions.c.number == number)).first()
        if row is None:
            raise Refused(f"there is no revision {number} of the rulebook; the running one is {self.latest()}")
        return Revision(
            number=row.number,
            text=row.text,
            author=row.author,
            created=row.created,
            note=row.note,
            warnings=tuple(json.loads(row.warnings)),
        )

    def save(
        self,
        text: str,
        *,
        author: str,
        now: datetime,
        note: str = "",
        warnings: Sequence[str] = (),
        expected: int | None = None,
    ) -> int:
        """
        Save a checked rulebook as the next revision, which runs from now on.

        Args:
            text: As written.
            author: Who saved it.
            now: When.
            note: Why, in their words.
            warnings: What was found, kept with it.
            expected: The revision it was made from; None: whatever runs.

        Returns:
            Its number.

        Raises:
            Overtaken: Somebody saved another since *expected*.
        """
        try:
            with self._ledger.writing("revisions.save") as connection:
                latest = connection.execute(
                    sa.select(sa.func.coalesce(sa.func.max(revisions.c.number), 0))
                ).scalar_one()
                if expected is not None and expected != latest:
                    raise Overtaken(f"the rulebook was changed meanwhile: you began with {expected}, now {latest} runs")
                connection.execute(
                    revisions.insert().values(
                        number=latest + 1, text=text, author=author, created=now, note=note,
                        warnings=json.dumps(list(warnings), ensure_ascii=False),
                    )
                )  # fmt: skip
                write_event(
                    connection, "rulebook.saved", now=now, subject=Subject(), actor=author, revision=latest + 1,
                    before=latest, note=note,
                )  # fmt: skip
                return int(latest) + 1
        except sa.exc.IntegrityError as error:
            raise Overtaken("the rulebook was saved by somebody else in this very moment; look again") from error


class Rulebooks:
    """
    Revisions as compiled rulebooks; used by any number of threads.

    The running one is also kept in a file of the home, so that a receiver knows its policy with the ledger away.
    """

    def __init__(self, revisions: Revisions, *, shelves: Shelves, cache: Path) -> None:
        self._revisions, self._shelves, self._cache = revisions, shelves, cache
        self._compiled: dict[int, Rulebook] = {0: parse("rules: {}\n", shelves=shelves)}
        self._running = 0
        self._followed: datetime | None = None
        self._lock = threading.Lock()

    def of(self, number: int) -> Rulebook:
        """
        The rulebook of a revision.

        Raises:
            LedgerAway: It is not known yet, and cannot be asked for now.
            ConfigError: It cannot be understood by this installation: a plug it names is gone.
        """
        with self._lock:
            book = self._compiled.get(number)
        if book is None:
            book = parse(self._revisions.get(number).text, shelves=self._shelves, number=number)
            with self._lock:
                self._compiled[number] = book
        return book

    def running(self) -> Rulebook:
        """The last one that was found."""
        return self._compiled[self._running]

    def follow(self, now: datetime) -> Rulebook:
        """
        The running one, looked for at most once a second; the last good one where a newer cannot be taken up.

        Raises:
            LedgerAway, ConfigError: There is no good one: nothing may be decided by the empty one.
        """
        if self._followed is None or abs(now - self._followed) >= _FOLLOW:
            self._followed = now
            try:
                self.refresh()
            except (LedgerAway, ConfigError) as error:
                if self._running == 0:
                    self._followed = None
                    raise
                log.warning("the rulebook cannot be taken up; the last good one goes on", reason=str(error))
        return self.running()

    def refresh(self) -> bool:
        """
        Look which revision runs; whether it is another than before.

        One that this installation cannot understand is not taken up: the last good one goes on, at start the one that
        is cached, or else the newest that can be understood.

        Raises:
            LedgerAway: Only where nothing is cached either.
            ConfigError: See above; what runs stays.
        """
        try:
            latest = self._revisions.latest()
        except LedgerAway:
            if self._running == 0 and not self._recall():
                raise
            return False
        if latest == self._running:
            return False
        try:
            book = self.of(latest)
        except ConfigError:
            if self._running == 0:
                self._fall_back(latest)
            raise
        self._running = latest
        try:
            self._remember(book)
        except OSError as error:
            log.warning("the rulebook cannot be cached", path=str(self._cache), reason=str(error))
        return True

    def _fall_back(self, latest: int) -> None:
        """Take up the last one that is good here, if there is any."""
        with contextlib.suppress(ConfigError):
            if self._recall():
                return
        for number in range(latest - 1, 0, -1):
            with contextlib.suppress(ConfigError, Refused):
                self._running = self.of(number).number
                return

    def _remember(self, book: Rulebook) -> None:
        temporary = self._cache.with_suffix(f".{os.getpid()}")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f"# revision {book.number}\n{book.text}")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o640)
        os.replace(temporary, self._cache)

    def _recall(self) -> bool:
        """Take up what was cached; whether there was anything."""
        try:
            head, _, text = self._cache.read_text(encoding="utf-8").partition("\n")
        except OSError:
            return False
        if not head.startswith("# revision ") or not head.rpartition(" ")[2].isdecimal():
            return False  # cut off, or not ours
        number = int(head.rpartition(" ")[2])
        self._compiled[number] = parse(text, shelves=self._shelves, number=number)
        self._running = number
        return True

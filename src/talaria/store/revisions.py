"""The rulebook's revisions, as they were written."""

import contextlib
import difflib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
import structlog
from pydantic import JsonValue

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway, Overtaken, Refused
from talaria.model.masking import masked, plain_masked, refuse_masks
from talaria.model.rulebook import Rulebook, Shelves, parse
from talaria.store.ledger import AnyRow, Ledger, Subject, write_event
from talaria.store.listing import PAGE, Page
from talaria.store.schema import revisions

log = structlog.get_logger()

_FOLLOW = timedelta(seconds=1)
_WARN_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One saved state of the rulebook."""

    number: int
    text: str
    author: str
    created: datetime
    note: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RevisionLine:
    """A revision in a list, without its text."""

    number: int
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
        return Revision(text=row.text, **vars(_line(row)))

    def list(self, *, limit: int = 50, after: int | None = None) -> Page[RevisionLine]:
        """
        Revisions, the newest first.

        Args:
            limit: Lines wanted, at most `PAGE`.
            after: The number of the last one of the page before.
        """
        most = max(1, min(limit, PAGE))
        columns = [column for column in revisions.c if column.name != "text"]
        statement = sa.select(*columns).order_by(revisions.c.number.desc()).limit(most + 1)
        if after is not None:
            statement = statement.where(revisions.c.number < after)
        with self._ledger.reading() as connection:
            rows = connection.execute(statement).all()
        shown = rows[:most]
        return Page(
            items=tuple(_line(row) for row in shown), next=str(shown[-1].number) if len(rows) > len(shown) else None
        )

    def diff(self, before: int, after: int) -> str:
        """
        How the text of one revision differs from that of another, unified; empty where it does not.

        Raises:
            Refused: One of them is not there.
        """
        return difference(self.get(before), self.get(after))

    def roll_back(
        self,
        number: int,
        *,
        check: Callable[[str], Rulebook],
        author: str,
        now: datetime,
        expected: int | None = None,
    ) -> tuple[int, Rulebook]:
        """
        Make the text of an earlier revision run again, as a new revision.

        Args:
            number: The revision whose text it is.
            check: Understands it by the plugs of today; what it raises is passed on, and nothing is saved.
            author, now, expected: As for `save`.

        Returns:
            The new revision's number, and the rulebook.

        Raises:
            Refused: There is no such revision, or it is the one that runs.
            Overtaken: Somebody saved another since *expected*.
            ConfigError: This installation cannot understand it.
        """
        text = self.get(number).text
        if number == self.latest():
            raise Refused(f"revision {number} is the one that runs; name an earlier one")
        book = check(text)
        saved = self.save(
            text, author=author, now=now, note=f"rollback to {number}", warnings=[str(w) for w in book.warnings],
            expected=expected,
        )  # fmt: skip
        return saved, book

    def refuse_overtaken(self, expected: int) -> None:
        """
        See that a revision is still the one that runs; `save` looks again.

        Raises:
            Overtaken: Somebody saved another since; says who.
        """
        with self._ledger.reading() as connection:
            latest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(revisions.c.number), 0))).scalar_one()
            if latest != expected:
                raise _overtaken(connection, expected)

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
                    raise _overtaken(connection, expected)
                connection.execute(
                    revisions.insert().values(
                        number=latest + 1, text=text, author=author, created=now, note=note,
                        warnings=json.dumps(list(warnings), ensure_ascii=False),
                    )
                )  # fmt: skip
                Ledger.announce(connection, "rulebook")
                write_event(
                    connection, "rulebook.saved", now=now, subject=Subject(), actor=author, revision=latest + 1,
                    before=latest, note=note,
                )  # fmt: skip
                return int(latest) + 1
        except sa.exc.IntegrityError as error:  # two at once, on a database where both may write
            with self._ledger.reading() as connection:
                raise _overtaken(connection, expected) from error


def _line(row: AnyRow) -> RevisionLine:
    return RevisionLine(
        number=row.number, author=row.author, created=row.created, note=row.note,
        warnings=tuple(json.loads(row.warnings)),
    )  # fmt: skip


def _overtaken(connection: sa.Connection, expected: int | None) -> Overtaken:
    """Says who was first."""
    row = connection.execute(sa.select(revisions).order_by(revisions.c.number.desc()).limit(1)).first()
    began = "" if expected is None else f": you began with {expected}"
    if row is None:
        return Overtaken(f"the rulebook was changed meanwhile{began}, and there is no revision yet")
    line = _line(row)
    note = f" ({line.note})" if line.note else ""
    when = line.created.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Overtaken(
        f"the rulebook was changed meanwhile{began}; revision {line.number} runs, saved by {line.author} at {when}"
        f"{note}; look at what it changed, and begin with that one"
    )


def difference(before: Revision, after: Revision) -> str:
    """How two revisions differ, as a unified diff of their texts."""
    lines = difflib.unified_diff(
        _lines(before.text), _lines(after.text), _named(before), _named(after), lineterm="\n"
    )  # fmt: skip
    return "".join(lines)


def _lines(text: str) -> Sequence[str]:
    """With their ends; a last line without one is told, as `diff` does."""
    *whole, last = text.split("\n")
    rest = [f"{last}\n\\ No newline at end of file\n"] if last else []
    return [*(f"{line}\n" for line in whole), *rest]


def _named(revision: Revision) -> str:
    return f"revision {revision.number}\t{revision.created:%Y-%m-%d %H:%M:%S} {revision.author}"


class Rulebooks:
    """
    Revisions as compiled rulebooks; used by any number of threads.

    The running one is also kept in a file of the home, so that a receiver knows its policy with the ledger away.
    """

    def __init__(self, revisions: Revisions, *, shelves: Shelves, cache: Path) -> None:
        self._revisions, self._shelves, self._cache = revisions, shelves, cache
        self._compiled: dict[int, Rulebook] = {0: parse("rules: {}\n", shelves=shelves)}
        self._refused: dict[int, ConfigError] = {}  # which plugs there are does not change while we run
        self._warned: tuple[int, datetime] | None = None
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
            book, refusal = self._compiled.get(number), self._refused.get(number)
        if book is not None:
            return book
        if refusal is not None:
            raise refusal.with_traceback(None)
        try:
            book = parse(self._revisions.get(number).text, shelves=self._shelves, number=number)
        except ConfigError as error:
            with self._lock:
                self._refused[number] = error
            raise
        with self._lock:
            self._compiled[number] = book
        return book

    @property
    def revisions(self) -> Revisions:
        """As they were written."""
        return self._revisions

    def check(self, text: str) -> Rulebook:
        """
        A rulebook as written, checked against the plugs that there are.

        Raises:
            ConfigError: Names everything that is wrong with it.
        """
        return parse(text, shelves=self._shelves)

    def masked(self, text: str) -> str:
        """A rulebook as it may be shown to others: to the letter, but for its secrets."""
        return masked(text, shelves=self._shelves)

    def plain(self, text: str) -> JsonValue:
        """The same as plain values."""
        return plain_masked(text, shelves=self._shelves)

    def refuse_masks(self, text: str) -> None:
        """
        See that no mask of `masked` is about to be kept as a secret.

        Raises:
            ConfigError: It holds one.
        """
        refuse_masks(text, shelves=self._shelves)

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
                self._warn(error, now)
        return self.running()

    def _warn(self, error: LedgerAway | ConfigError, now: datetime) -> None:
        """Once a minute, and at once for another revision."""
        newest = max(self._refused, default=0)
        if self._warned is not None and self._warned[0] == newest and abs(now - self._warned[1]) < _WARN_EVERY:
            return
        self._warned = newest, now
        log.warning("the rulebook cannot be taken up; the last good one goes on", revision=newest, reason=str(error))

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
        failpoint("revisions.cache.synced")
        os.replace(temporary, self._cache)
        failpoint("revisions.cache.named")

    def kept(self) -> tuple[int, str] | None:
        """The number and text that the home keeps of the revision that ran last; None if there is none."""
        try:
            head, _, text = self._cache.read_text(encoding="utf-8").partition("\n")
        except OSError:
            return None
        if not head.startswith("# revision ") or not head.rpartition(" ")[2].isdecimal():
            return None  # cut off, or not ours
        return int(head.rpartition(" ")[2]), text

    def _recall(self) -> bool:
        """Take up what was cached; whether there was anything."""
        found = self.kept()
        if found is None:
            return False
        number, text = found
        self._compiled[number] = parse(text, shelves=self._shelves, number=number)
        self._running = number
        return True

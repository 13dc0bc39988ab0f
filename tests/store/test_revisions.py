"""The rulebook's revisions, and the one that runs."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from rows import HEAD, SHELVES, TO_X
from talaria.model.errors import ConfigError, LedgerAway, Overtaken, Refused
from talaria.store.ledger import Ledger
from talaria.store.revisions import Revisions, Rulebooks
from talaria.testing import MovedClock

TEXT = f"{HEAD}  {TO_X}\n"
OTHER = f"# another\n{TEXT}"


@pytest.fixture
def revisions(ledger: Ledger) -> Revisions:
    return Revisions(ledger)


def rulebooks_on(ledger: Ledger, tmp_path: Path) -> Rulebooks:
    return Rulebooks(Revisions(ledger), shelves=SHELVES, cache=tmp_path / "running.yaml")


def away(tmp_path: Path) -> Ledger:
    """A ledger that cannot be reached: its place is a folder."""
    (tmp_path / "away").mkdir(exist_ok=True)
    return Ledger.open(f"sqlite:///{tmp_path}/away")


def save(revisions: Revisions, clock: MovedClock, text: str = TEXT, expected: int | None = None) -> int:
    return revisions.save(text, author="eve", now=clock.now(), note="why", warnings=["w"], expected=expected)


def test_revisions_are_numbered(revisions: Revisions, clock: MovedClock) -> None:
    """
    Revisions count from 1, and the last runs.
    """
    assert [0, 1, 2] == [revisions.latest(), save(revisions, clock), save(revisions, clock)]
    assert 2 == revisions.latest()


def test_text_is_kept_to_the_letter(revisions: Revisions, clock: MovedClock) -> None:
    """
    A revision gives back what was written, by whom, when and why.
    """
    text = "# Prüfkörper 合成\r\nrules: {}   \n\n"
    found = revisions.get(save(revisions, clock, text))

    assert (text, "eve", clock.now(), "why", ("w",)) == (
        found.text, found.author, found.created, found.note, found.warnings
    )  # fmt: skip


def test_unknown_revision_is_refused(revisions: Revisions, clock: MovedClock) -> None:
    """
    A number that no revision has is refused, and the running one named.
    """
    save(revisions, clock)
    with pytest.raises(Refused, match="there is no revision 7 of the rulebook; the running one is 1"):
        revisions.get(7)


def test_changed_meanwhile_is_overtaken(revisions: Revisions, clock: MovedClock) -> None:
    """
    Who began with a revision that runs no more saves nothing, and is told who was first.
    """
    save(revisions, clock)
    with pytest.raises(Overtaken) as raised:
        save(revisions, clock, OTHER, expected=0)

    assert str(raised.value) == (
        "the rulebook was changed meanwhile: you began with 0; revision 1 runs, saved by eve at 2026-01-05 08:00:00 "
        "UTC (why); look at what it changed, and begin with that one"
    )
    assert (1, 2) == (revisions.latest(), save(revisions, clock, OTHER, expected=1))


def test_list_walks_all_without_texts(revisions: Revisions, clock: MovedClock) -> None:
    """
    Revisions are listed the newest first, a page at a time.
    """
    for _ in range(5):
        save(revisions, clock)
    first = revisions.list(limit=2)
    second = revisions.list(limit=2, after=int(first.next or 0))
    third = revisions.list(limit=2, after=int(second.next or 0))

    assert [5, 4, 3, 2, 1] == [line.number for page in (first, second, third) for line in page.items]
    assert None is third.next
    assert ("eve", "why", ("w",)) == (first.items[0].author, first.items[0].note, first.items[0].warnings)


def test_difference_is_unified(revisions: Revisions, clock: MovedClock) -> None:
    """
    Two revisions differ by lines, and a last line without its end is told.
    """
    save(revisions, clock, "a: 1\nb: 2\n"), save(revisions, clock, "a: 1\nb: 3\nc: 4")

    assert revisions.diff(1, 2) == (
        "--- revision 1\t2026-01-05 08:00:00 eve\n+++ revision 2\t2026-01-05 08:00:00 eve\n@@ -1,2 +1,3 @@\n"
        " a: 1\n-b: 2\n+b: 3\n+c: 4\n\\ No newline at end of file\n"
    )
    assert "" == revisions.diff(2, 2)
    with pytest.raises(Refused, match="there is no revision 9"):
        revisions.diff(1, 9)


def test_roll_back_is_a_new_revision(ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock) -> None:
    """
    An earlier text runs again under a new number, checked anew, and says where it is from.
    """
    save(revisions, clock), save(revisions, clock, OTHER)
    books = rulebooks_on(ledger, tmp_path)
    number, book = revisions.roll_back(1, check=books.check, author="ada", now=clock.now(), expected=2)

    assert (3, TEXT) == (number, book.text)
    assert (TEXT, "ada", "rollback to 1") == (
        revisions.get(3).text, revisions.get(3).author, revisions.get(3).note
    )  # fmt: skip
    with pytest.raises(Refused, match="revision 3 is the one that runs; name an earlier one"):
        revisions.roll_back(3, check=books.check, author="ada", now=clock.now())
    with pytest.raises(Overtaken):
        revisions.roll_back(1, check=books.check, author="ada", now=clock.now(), expected=2)


def test_roll_back_of_what_is_not_understood_is_refused(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    A text that names a plug which is gone since is not brought back.
    """
    save(revisions, clock, TEXT.replace("kind: nowhere", "kind: somewhere")), save(revisions, clock)

    with pytest.raises(ConfigError):
        revisions.roll_back(1, check=rulebooks_on(ledger, tmp_path).check, author="ada", now=clock.now())
    assert 2 == revisions.latest()


def test_two_who_save_at_once(revisions: Revisions, clock: MovedClock) -> None:
    """
    Of several who began with the same revision and save at once one succeeds.
    """
    came: list[object] = []
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait(10)
        try:
            came.append(save(revisions, clock, expected=0))
        except Overtaken:
            came.append(None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert [1, None, None, None] == sorted(came, key=lambda number: number is None)
    assert 1 == revisions.latest()


def test_saved_rulebook_is_taken_up(ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock) -> None:
    """
    A service takes up what was saved within a second, and says that it did.
    """
    books = rulebooks_on(ledger, tmp_path)
    assert (0, False) == (books.running().number, books.refresh())
    save(revisions, clock)

    assert (True, 1, False) == (books.refresh(), books.running().number, books.refresh())
    save(revisions, clock, OTHER)
    assert 2 == books.follow(clock.now()).number
    save(revisions, clock)
    assert 2 == books.follow(clock.now() + timedelta(milliseconds=900)).number
    assert 3 == books.follow(clock.now() + timedelta(seconds=1)).number


def test_earlier_revision_is_compiled_when_asked_for(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    A job's own revision is at hand, whatever runs now.
    """
    save(revisions, clock), save(revisions, clock, "rules: {}\n")
    books = rulebooks_on(ledger, tmp_path)
    books.refresh()

    assert (2, ["to-x"]) == (books.running().number, [rule.name for rule in books.of(1).rules])
    assert books.of(1) is books.of(1)


def test_rulebook_that_is_not_understood_is_not_taken_up(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    Where a plug that a new rulebook names is not installed, the last good one goes on.
    """
    save(revisions, clock)
    books = rulebooks_on(ledger, tmp_path)
    books.refresh()
    save(revisions, clock, TEXT.replace("kind: nowhere", "kind: somewhere"))

    with pytest.raises(ConfigError):
        books.refresh()
    assert 1 == books.follow(clock.now()).number


def test_bad_revision_is_understood_once_and_told_once_a_minute(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    While a revision that cannot be taken up is the newest, it is not read again each second, and the log tells of it
    once a minute.
    """
    save(revisions, clock)
    books = rulebooks_on(ledger, tmp_path)
    books.refresh()
    save(revisions, clock, TEXT.replace("kind: nowhere", "kind: somewhere"))
    with structlog.testing.capture_logs() as told:
        refusals = []
        for _ in range(150):
            books.follow(clock.now())
            refusals.append(books._refused[2])
            clock.move(timedelta(seconds=1))

    assert 1 == len({id(refusal) for refusal in refusals})
    assert [2, 2, 2] == [line["revision"] for line in told]
    save(revisions, clock, OTHER)
    assert 3 == books.follow(clock.now()).number


def test_cached_rulebook_runs_with_the_ledger_away(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    A receiver started with the ledger away runs by the rulebook that ran last.
    """
    save(revisions, clock), save(revisions, clock, OTHER)
    rulebooks_on(ledger, tmp_path).refresh()
    books = rulebooks_on(away(tmp_path), tmp_path)
    books.refresh()

    assert (2, OTHER) == (books.running().number, books.running().text)


@pytest.mark.parametrize("left", [None, "", "# revision", "# revision x\nrules: {}\n", "rules: {}\n"])
def test_nothing_usable_is_cached(tmp_path: Path, left: str | None) -> None:
    """
    With the ledger away and no cache, or one that was cut off, the ledger is named as what is missing.
    """
    if left is not None:
        (tmp_path / "running.yaml").write_text(left)
    with pytest.raises(LedgerAway):
        rulebooks_on(away(tmp_path), tmp_path).refresh()


def test_ledger_that_goes_away_changes_nothing(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    What ran when the ledger went away goes on.
    """
    save(revisions, clock)
    books = rulebooks_on(ledger, tmp_path)
    books.refresh()
    save(revisions, clock, OTHER)
    books._revisions = Revisions(away(tmp_path))

    assert 1 == books.follow(clock.now()).number


def test_cache_that_cannot_be_written_stops_nothing(
    ledger: Ledger, revisions: Revisions, tmp_path: Path, clock: MovedClock
) -> None:
    """
    A rulebook runs though the home has no room to cache it.
    """
    save(revisions, clock)
    books = Rulebooks(revisions, shelves=SHELVES, cache=tmp_path / "missing" / "running.yaml")

    assert (True, 1) == (books.refresh(), books.running().number)

"""The cleaner: what retention allows, the oldest first; nothing on the word of a clock or disk that is not right."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from orchestra import Orchestra
from talaria.store.ledger import Subject, write_event
from talaria.testing import synthetic_ct

MINUTE = timedelta(minutes=1)


@pytest.fixture
def orchestra(tmp_path: Path) -> Orchestra:
    """One delivered study of a rule that keeps what is done for three days."""
    (tmp_path / "out").mkdir()
    found = Orchestra(tmp_path)
    found.apply(
        f"""
settings: {{series_quiet: 2s, retention: {{done: 3d}}}}
targets: {{share: {{kind: folder, path: {tmp_path}/out}}}}
rules: {{all: {{when: "True", action: route, send: [share]}}}}
"""
    )
    found.cleaner.step(found.clock.now())
    found.receive(synthetic_ct(tmp_path / "ct", slices=2, side=32).paths)
    found.wait(timedelta(seconds=10))
    return found


def kept(orchestra: Orchestra) -> int:
    return len(list((orchestra.spool.root / "store").rglob("*.dcm")))


def test_what_is_delivered_goes_when_its_time_is_over(orchestra: Orchestra) -> None:
    """
    Kept for three days, gone after.
    """
    orchestra.clock.move(timedelta(days=2, hours=23))
    orchestra.cleaner.step(orchestra.clock.now())
    before = kept(orchestra)
    orchestra.clock.move(timedelta(hours=2))
    orchestra.cleaner.step(orchestra.clock.now())

    assert (2, 0) == (before, kept(orchestra))


def test_events_written_in_the_same_moment_are_no_jump(orchestra: Orchestra) -> None:
    """
    On a busy machine an event is always a little younger than the cleaner's look at the clock.
    """
    now = orchestra.clock.move(timedelta(days=4))
    with orchestra.ledger.writing("test") as connection:
        write_event(connection, "job.made", now=now + timedelta(milliseconds=5), subject=Subject())
    orchestra.cleaner.step(now)

    assert 0 == kept(orchestra)


def test_clock_that_jumped_deletes_nothing(orchestra: Orchestra) -> None:
    """
    A wall clock that runs away from the monotonic one is not believed.
    """
    orchestra._began += timedelta(days=4)  # the machine has not been up for so long
    orchestra.clock.move(timedelta(days=4))
    orchestra.cleaner.step(orchestra.clock.now())

    assert 2 == kept(orchestra)


def test_room_that_expired_studies_free_is_not_asked_of_others(
    tmp_path: Path, orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With the disk nearly full, what is over goes first; a study delivered just now stays when that was enough.
    """
    orchestra.clock.move(timedelta(days=4))
    orchestra.receive(synthetic_ct(tmp_path / "new", seed=2, slices=2, side=32).paths)
    orchestra.wait(timedelta(seconds=10))
    monkeypatch.setattr(orchestra.cleaner, "_watermark", 0.5)
    monkeypatch.setattr(orchestra.spool, "capacity", lambda: (100_000, 60_000 if kept(orchestra) <= 2 else 40_000))
    orchestra.clock.move(MINUTE)
    orchestra.cleaner.step(orchestra.clock.now())

    assert 2 == kept(orchestra)


def test_file_that_cannot_be_removed_stops_no_other(orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What cannot be removed now is tried again at the next look.
    """
    drop = orchestra.spool.drop
    first = min(path.stem for path in (orchestra.spool.root / "store").rglob("*.dcm"))

    def stubborn(instance_id: str) -> None:
        if instance_id == first:
            raise OSError(5, os.strerror(5))
        drop(instance_id)

    orchestra.clock.move(timedelta(days=4))
    with monkeypatch.context() as broken:
        broken.setattr(orchestra.spool, "drop", stubborn)
        orchestra.cleaner.step(orchestra.clock.now())
    after_one = kept(orchestra)
    orchestra.clock.move(MINUTE)
    orchestra.cleaner.step(orchestra.clock.now())

    assert (1, 0) == (after_one, kept(orchestra))


def test_spool_that_is_away_is_not_taken_for_empty(tmp_path: Path, orchestra: Orchestra) -> None:
    """
    With the disk unmounted nothing is marked as gone; once it is back, retention goes on.
    """
    orchestra.clock.move(timedelta(days=4))
    os.rename(orchestra.spool.root, tmp_path / "elsewhere")
    orchestra.spool.root.mkdir()
    orchestra.cleaner.step(orchestra.clock.now())
    orchestra.spool.root.rmdir()
    os.rename(tmp_path / "elsewhere", orchestra.spool.root)
    before = kept(orchestra)
    orchestra.clock.move(MINUTE)
    orchestra.cleaner.step(orchestra.clock.now())

    assert (2, 0) == (before, kept(orchestra))

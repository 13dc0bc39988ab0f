"""What a delivery does when it is taken up again, when retention was there before it, and when the spool is away."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa

from orchestra import Orchestra
from talaria.model.extensions import Delivery, Findings, Outcome, Standing, Target
from talaria.model.job import Event, Job, State
from talaria.store.schema import deliveries, series
from talaria.testing import FailingTarget, synthetic_ct

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
REMOVED = "its files were removed by retention; send the study again"


class Careless(Target):
    """A target that leaves out its last instance and answers for two that it never got."""

    kind: ClassVar[str] = "careless"

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """All but the last, and more."""
        wanted = [parcel.instance_id for parcel in delivery.parcels[:-1]]
        for instance_id in (*wanted, "0" * 26, "1" * 26):
            yield Outcome(instance_id=instance_id, standing=Standing.SENT)

    def check(self) -> Findings:
        """Nothing to reach."""
        return ()


def orchestra_of(home: Path, targets: str, *, retention: str = "{}") -> Orchestra:
    """One that sends every series to the targets named."""
    (home / "out").mkdir()
    found = Orchestra(home, targets={"failing": FailingTarget, "careless": Careless})
    names = [line.strip().partition(":")[0] for line in targets.splitlines()]
    lines = "\n".join(f"  {line.strip()}" for line in targets.splitlines())
    found.apply(
        f"settings: {{series_quiet: 10s, retention: {retention}}}\ntargets:\n{lines}\n"
        f"rules: {{all: {{when: 'True', send: [{', '.join(names)}]}}}}\n"
    )
    return found


def folder_orchestra(home: Path) -> Orchestra:
    return orchestra_of(home, f"out: {{kind: folder, path: {home}/out}}")


def clean(orchestra: Orchestra) -> None:
    """Let retention take what is over."""
    orchestra.clock.move(40 * DAY)
    orchestra.cleaner.step(orchestra.clock.now())
    with orchestra.ledger.reading() as connection:
        assert None is not connection.execute(sa.select(series.c.dropped)).scalar_one()


def act(orchestra: Orchestra, event: Event) -> Job:
    """What a person asks of the first job, and what becomes of it."""
    orchestra.jobs.act(1, event, actor="p", now=orchestra.clock.now())
    orchestra.step()
    return orchestra.jobs.show(1)


def sums(orchestra: Orchestra) -> tuple[int, int]:
    """Sent and total of the first delivery."""
    with orchestra.ledger.reading() as connection:
        row = connection.execute(sa.select(deliveries.c.sent, deliveries.c.total).order_by(deliveries.c.id)).first()
    assert row is not None
    return row.sent, row.total


# -- retention was there before --


def test_restart_after_cleaning_fails(tmp_path: Path) -> None:
    """
    A delivery that is started again when its files are gone fails with what to do, and keeps its total.
    """
    orchestra = folder_orchestra(tmp_path)
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.wait(20 * SECOND)
    clean(orchestra)
    job = act(orchestra, Event.RESTART)

    assert (State.FAILED, REMOVED) == (job.state, job.reason)
    assert (0, 3) == sums(orchestra)


def test_retry_after_cleaning_fails(tmp_path: Path) -> None:
    """
    A delivery of which a part arrived before its files were removed is not called done.
    """
    target = f"out: {{kind: failing, journal: {tmp_path}/journal, script: [send, permanent]}}"
    orchestra = orchestra_of(tmp_path, target, retention="{failed: 3d}")
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.wait(20 * SECOND)
    clean(orchestra)
    job = act(orchestra, Event.RETRY)

    assert (State.FAILED, REMOVED, (1, 3)) == (job.state, job.reason, sums(orchestra))


# -- taken up again --


def test_retry_seals_the_folder(tmp_path: Path) -> None:
    """
    A folder that has every file but could not be finished is finished by the next attempt, though nothing is missing.
    """
    orchestra = folder_orchestra(tmp_path)
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.wait(20 * SECOND)
    (mark,) = (tmp_path / "out").rglob(".complete")
    mark.unlink()
    with orchestra.ledger.writing("test") as connection:
        connection.execute(sa.text("UPDATE jobs SET state = 'failed'"))

    assert (State.DONE, True) == (act(orchestra, Event.RETRY).state, mark.exists())


def test_retry_finds_files_missing(tmp_path: Path) -> None:
    """
    A folder that lost a file before it was complete does not become done by a retry.
    """
    orchestra = folder_orchestra(tmp_path)
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.wait(20 * SECOND)
    for path in (*(tmp_path / "out").rglob(".complete"), next((tmp_path / "out").rglob("*.dcm"))):
        path.unlink()
    with orchestra.ledger.writing("test") as connection:
        connection.execute(sa.text("UPDATE jobs SET state = 'failed'"))
    job = act(orchestra, Event.RETRY)

    assert State.FAILED == job.state
    assert "2 of 3 instances stand in delivery" in job.reason


def test_outcomes_of_others_do_not_count(tmp_path: Path) -> None:
    """
    What a target says of instances it was not given stands for none that is missing, and spoils none that arrived.
    """
    orchestra = orchestra_of(tmp_path, "out: {kind: careless}")
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.clock.move(11 * SECOND)
    orchestra.router.step(orchestra.clock.now())
    orchestra.dispatcher.step(orchestra.clock.now())
    job = orchestra.jobs.show(1)

    assert (State.DEFERRED, "1 of 3 instances were not answered for") == (job.state, job.reason)
    assert (2, 3) == sums(orchestra)


# -- the spool --


def test_spool_away_defers(tmp_path: Path) -> None:
    """
    While the spool's disk is not mounted a delivery waits; then it goes on, and no instance counts as lost.
    """
    orchestra = folder_orchestra(tmp_path)
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    orchestra.clock.move(11 * SECOND)
    orchestra.router.step(orchestra.clock.now())
    shutil.move(tmp_path / "spool", tmp_path / "elsewhere")
    orchestra.dispatcher.step(orchestra.clock.now())
    away = orchestra.jobs.show(1)
    shutil.move(tmp_path / "elsewhere", tmp_path / "spool")
    orchestra.wait(timedelta(minutes=1))

    assert (State.DEFERRED, State.DONE) == (away.state, orchestra.jobs.show(1).state)
    assert f"spool {tmp_path}/spool: its marker file is gone; is the disk mounted?" == away.reason


def test_lost_file_fails(tmp_path: Path) -> None:
    """
    An instance whose file is gone from a spool that is there fails, and the others arrive.
    """
    orchestra = folder_orchestra(tmp_path)
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    next((tmp_path / "spool" / "store").rglob("*.dcm")).unlink(missing_ok=True)
    orchestra.wait(20 * SECOND)
    job = orchestra.jobs.show(1)

    assert (State.FAILED, 2) == (job.state, sums(orchestra)[0])


# -- the clock --


@pytest.mark.parametrize("step", [timedelta(hours=6), timedelta(days=400)], ids=str)
def test_clock_set_back_stops_no_delivery(tmp_path: Path, step: timedelta) -> None:
    """
    A delivery that was deferred before the clock was set back is tried again soon, not when the time has come again.
    """
    orchestra = orchestra_of(tmp_path, f"out: {{kind: failing, journal: {tmp_path}/journal, script: [transient]}}")
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=2, side=16).paths)
    orchestra.clock.move(11 * SECOND)
    orchestra.router.step(orchestra.clock.now())
    orchestra.dispatcher.step(orchestra.clock.now())
    orchestra.clock.move(-step)
    orchestra.wait(timedelta(minutes=1))

    assert State.DONE == orchestra.jobs.show(1).state

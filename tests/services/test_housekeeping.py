"""The bookkeeper's housekeeping: compaction by the way, pruning at night, and nothing on the word of a wrong clock."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestra import Orchestra
from talaria.store.schema import deliveries, outcomes, series
from talaria.testing import synthetic_ct

HOUR = timedelta(hours=1)


@pytest.fixture
def orchestra(tmp_path: Path) -> Orchestra:
    """One delivered study; tags are kept for ten days, off-peak is from 22 to 6."""
    (tmp_path / "out").mkdir()
    found = Orchestra(tmp_path)
    found.apply(
        f"""
settings: {{series_quiet: 2s, record_days: 10, off_peak: "22:00-06:00", time_zone: UTC, retention: {{done: 1d}}}}
targets: {{share: {{kind: folder, path: {tmp_path}/out}}}}
rules: {{all: {{when: "True", action: route, send: [share]}}}}
"""
    )
    found.cleaner.step(found.clock.now())
    found.receive(synthetic_ct(tmp_path / "ct", slices=3, side=32).paths)
    found.wait(timedelta(seconds=10))
    return found


def counted(orchestra: Orchestra) -> tuple[int, int, int]:
    """Outcomes that are rows, deliveries that have a digest, series whose tags were reduced."""
    with orchestra.ledger.reading() as connection:
        return (
            len(connection.execute(sa.select(outcomes.c.instance_id)).all()),
            len(connection.execute(sa.select(deliveries.c.id).where(deliveries.c.digest.is_not(None))).all()),
            len(connection.execute(sa.select(series.c.id).where(series.c.reduced)).all()),
        )


def keep_house(orchestra: Orchestra) -> None:
    """A minute of the bookkeeper, and a look of the cleaner."""
    orchestra.clock.move(timedelta(minutes=1))
    orchestra.cleaner.step(orchestra.clock.now())
    while orchestra.bookkeeper.step(orchestra.clock.now()):
        pass


def at_hour(orchestra: Orchestra, hour: int) -> None:
    """Let time pass until that hour of a day."""
    while orchestra.clock.now().hour != hour:
        orchestra.clock.move(HOUR)


def test_outcomes_are_compacted_within_a_minute_of_their_rest(orchestra: Orchestra) -> None:
    """
    An hour after the end the outcomes are a digest, at any time of the day.
    """
    keep_house(orchestra)
    before = counted(orchestra)
    orchestra.clock.move(HOUR)
    keep_house(orchestra)

    assert ((3, 0, 0), (0, 1, 0)) == (before, counted(orchestra))


def test_pruning_waits_for_the_night(orchestra: Orchestra) -> None:
    """
    What is old enough is forgotten off-peak, and told in one event; the history of each instance stays.
    """
    orchestra.clock.move(timedelta(days=2))
    keep_house(orchestra)  # the files go
    orchestra.clock.move(timedelta(days=12))
    at_hour(orchestra, 12)
    keep_house(orchestra)
    by_day = counted(orchestra)
    at_hour(orchestra, 23)
    keep_house(orchestra)
    keep_house(orchestra)
    told = [event.detail for event in orchestra.listing.events(limit=500) if event.kind == "ledger.pruned"]

    assert ((0, 1, 0), (0, 1, 1)) == (by_day, counted(orchestra))
    assert [{"forgotten": {"tags": 1}}] == told


def test_clock_that_jumped_prunes_nothing(orchestra: Orchestra) -> None:
    """
    A wall clock that runs away from the monotonic one is not believed.
    """
    orchestra.clock.move(timedelta(days=2))
    keep_house(orchestra)
    at_hour(orchestra, 23)
    keep_house(orchestra)  # a night in good order
    orchestra._began += timedelta(days=20)  # the machine has not been up for so long
    orchestra.clock.move(timedelta(days=20))
    at_hour(orchestra, 23)
    keep_house(orchestra)

    assert 0 == counted(orchestra)[2]

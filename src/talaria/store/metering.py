"""Figures for monitoring: counts kept as things happen, and counts over indexes of what is open and what is over."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from talaria.model.job import Kind, State
from talaria.store.ledger import Ledger
from talaria.store.schema import OPEN, OVER, delivered, jobs, received

#: Deliveries are counted by the first of these that they did not exceed, in seconds; 0 stands for all beyond.
BOUNDS_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400)

#: Rows in which deliveries of one target and bound are counted.
_PARTS = 16

#: Senders told one by one, the busiest first; anybody can call itself anything, and each name is a series for ever.
MOST_SENDERS = 200

#: The label of all senders beyond.
OTHER = "(other)"

#: Of its time, the share that a reader may spend on counting jobs: a count that took 1 s stands for 20 s.
_SHARE = 20
_LEAST_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Received:
    """What one sender sent, over all time."""

    calling_ae: str
    instances: int
    size_bytes: int
    repeats: int
    """Identical copies that came again."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """How long the deliveries to one target took, over all time."""

    target: str
    up_to: Mapping[int, int]
    """Bound in seconds -> how many took so long at most."""
    count: int
    seconds: float
    """Of all of them together."""


@dataclass(frozen=True, kw_only=True)
class JobCount:
    """Jobs of one kind, state and target."""

    kind: Kind
    state: State
    target: str | None
    """Of open dispatch jobs; None for all others."""
    number: int
    oldest: datetime | None
    """When the oldest of them was made; None for those that are over."""


def count_delivery(connection: Connection, target: str | None, took: timedelta, *, job_id: int) -> None:
    """
    Count a delivery that is whole, in the transaction that ends its job, as the last thing in it.

    Its row is locked until that is synced, and the next to count in it waits; so each target has several. Two that
    lock nothing after it cannot wait for each other.
    """
    seconds = max(took.total_seconds(), 0.0)
    bound = next((bound for bound in BOUNDS_SECONDS if seconds <= bound), 0)
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(delivered).values(
        target=target or "", bound=bound, part=job_id % _PARTS, deliveries=1, seconds=seconds
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[delivered.c.target, delivered.c.bound, delivered.c.part],
            set_={"deliveries": delivered.c.deliveries + 1, "seconds": delivered.c.seconds + seconds},
        )
    )


class Metering:
    """
    Reads the figures; used by any number of threads.

    Instances and deliveries are kept as sums. Jobs are counted: the open ones over an index of open jobs alone, those
    that are over through one of theirs, without a look at the table; a count is used again for twenty times as long as
    it took, so that counting takes a twentieth of one core at most, however many jobs there are.
    """

    def __init__(self, ledger: Ledger, *, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._stopwatch = ledger, stopwatch
        self._jobs: tuple[JobCount, ...] = ()
        self._good_until = float("-inf")
        self._lock = threading.Lock()

    def received(self) -> tuple[Received, ...]:
        """What came, by sender; those beyond `MOST_SENDERS` together, as `OTHER`."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(received).order_by(received.c.instances.desc(), received.c.calling_ae)
            ).all()
        lines = [
            Received(calling_ae=r.calling_ae, instances=r.instances, size_bytes=r.size_bytes, repeats=r.repeats)
            for r in rows
        ]
        return (*lines[:MOST_SENDERS], *_together(lines[MOST_SENDERS:]))

    def delivered(self) -> tuple[Taken, ...]:
        """How long deliveries took, by target."""
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(delivered).order_by(delivered.c.target)).all()
        found: dict[str, dict[int, tuple[int, float]]] = {}
        for row in rows:
            bounds = found.setdefault(row.target, {})
            number, seconds = bounds.get(row.bound, (0, 0.0))
            bounds[row.bound] = (number + row.deliveries, seconds + row.seconds)
        return tuple(_taken(target, by_bound) for target, by_bound in found.items())

    def jobs(self) -> tuple[JobCount, ...]:
        """All jobs by kind and state, open dispatch jobs also by target; as they stood a little while ago."""
        with self._lock:  # one counts, the others wait for its answer
            began = self._stopwatch()
            if began >= self._good_until:
                self._jobs = self._counted()
                took = self._stopwatch() - began
                self._good_until = began + max(_LEAST_SECONDS, _SHARE * took)
            return self._jobs

    def _counted(self) -> tuple[JobCount, ...]:
        number, oldest = sa.func.count().label("number"), sa.func.min(jobs.c.created).label("oldest")
        # As the indexes have it, to the letter: a database takes a partial index where it sees the same condition.
        still = sa.select(jobs.c.kind, jobs.c.state, jobs.c.target, number, oldest).where(sa.text(OPEN))
        over = sa.select(jobs.c.kind, jobs.c.state, number).where(sa.text(OVER))
        with self._ledger.reading() as connection:
            rows = connection.execute(still.group_by(jobs.c.kind, jobs.c.target, jobs.c.state)).all()
            ended = connection.execute(over.group_by(jobs.c.kind, jobs.c.state)).all()
        return (
            *(
                JobCount(kind=Kind(r.kind), state=State(r.state), target=r.target, number=r.number, oldest=r.oldest)
                for r in rows
            ),
            *(
                JobCount(kind=Kind(r.kind), state=State(r.state), target=None, number=r.number, oldest=None)
                for r in ended
            ),
        )


def _together(lines: Sequence[Received]) -> tuple[Received, ...]:
    if not lines:
        return ()
    return (
        Received(
            calling_ae=OTHER,
            instances=sum(line.instances for line in lines),
            size_bytes=sum(line.size_bytes for line in lines),
            repeats=sum(line.repeats for line in lines),
        ),
    )


def _taken(target: str, by_bound: Mapping[int, tuple[int, float]]) -> Taken:
    up_to: dict[int, int] = {}
    count = 0
    for bound in BOUNDS_SECONDS:
        count += by_bound.get(bound, (0, 0.0))[0]
        up_to[bound] = count
    return Taken(
        target=target,
        up_to=up_to,
        count=count + by_bound.get(0, (0, 0.0))[0],
        seconds=sum(seconds for _, seconds in by_bound.values()),
    )

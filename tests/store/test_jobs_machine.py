"""Whatever workers, deaths and persons do to the queue, in any order: it agrees with a few lines of arithmetic."""

import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rows import SPOOL, Rows, make_ledger
from talaria.model.errors import Overtaken, Refused
from talaria.model.job import TRANSITIONS, Event, Kind, State
from talaria.store.jobs import LEASE, MOST_DEATHS, Claim
from talaria.store.ledger import Ledger
from talaria.testing import MovedClock

pytestmark = pytest.mark.slow

OWNERS = ("here/1/1", "here/2/1", "there/1/1")
ENDS = (Event.FINISH, Event.DEFER, Event.FAIL, Event.BREAK, Event.YIELD)
ACTS = (Event.RETRY, Event.HOLD, Event.RELEASE, Event.CANCEL, Event.RESTART)


@dataclass
class Expected:
    """A job as it should be."""

    state: State
    due: datetime
    attempt: int = 0
    owner: str | None = None
    lease: datetime | None = None
    deaths: int = 0


class Queue(RuleBasedStateMachine):
    """The ledger's queue beside the same queue as a dictionary."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "ledger.db")
        self.clock = MovedClock()
        self.rows = Rows(Ledger.open(f"sqlite:///{self.folder}/ledger.db"), self.clock)
        self.expected: dict[int, Expected] = {}
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.rows.ledger.close()
        shutil.rmtree(self.folder)

    def move(self, job: Expected, event: Event) -> None:
        job.state = TRANSITIONS[job.state, event]
        if event is not Event.CLAIM:
            job.owner = job.lease = None

    @precondition(lambda self: len(self.expected) < 5)
    @rule()
    def make(self) -> None:
        (job_id,) = self.rows.jobs_of(images=1)
        self.expected[job_id] = Expected(State.PENDING, self.clock.now())

    @rule(seconds=st.sampled_from([1, 5, 19, 21, 600]))
    def wait(self, seconds: int) -> None:
        self.clock.move(timedelta(seconds=seconds))

    @rule(owner=st.sampled_from(OWNERS))
    def claim(self, owner: str) -> None:
        now = self.clock.now()
        claim = self.rows.jobs.claim(Kind.DISPATCH, owner=owner, spools=[SPOOL], now=now, off_peak=True)
        ready = [
            (job.due, job_id)
            for job_id, job in self.expected.items()
            if job.state in {State.PENDING, State.DEFERRED} and job.due <= now
        ]
        assert (min(ready)[1] if ready else None) == (claim.job.id if claim else None)
        if claim is not None:
            job = self.expected[claim.job.id]
            self.move(job, Event.CLAIM)
            job.attempt, job.owner, job.lease = job.attempt + 1, owner, now + LEASE
            self.claims.append(claim)

    def is_ours(self, claim: Claim) -> bool:
        job = self.expected[claim.job.id]
        return (State.ACTIVE, claim.owner, claim.job.attempt) == (job.state, job.owner, job.attempt)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), event=st.sampled_from(ENDS), wait=st.integers(0, 60))
    def end(self, data: st.DataObject, event: Event, wait: int) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        job, now = self.expected[claim.job.id], self.clock.now()
        due = now + timedelta(seconds=wait) if event is Event.DEFER else None
        if not self.is_ours(claim):
            with pytest.raises(Overtaken):
                self.rows.jobs.end(claim, event, now=now, due=due)
            return
        self.rows.jobs.end(claim, event, now=now, due=due)
        self.move(job, event)
        job.due = due or job.due
        job.attempt -= event is Event.YIELD

    @precondition(lambda self: self.claims)
    @rule()
    def heartbeat(self) -> None:
        newest = {claim.job.id: claim for claim in self.claims}
        ours = {job_id for job_id, claim in newest.items() if self.is_ours(claim)}
        assert ours == self.rows.jobs.heartbeat(newest.values(), now=self.clock.now())
        for job_id in ours:
            self.expected[job_id].lease = self.clock.now() + LEASE

    @rule(dead=st.sampled_from((*OWNERS, "nobody")))
    def expire(self, dead: str) -> None:
        now = self.clock.now()
        lost = [
            job
            for job in self.expected.values()
            if job.state is State.ACTIVE and (job.owner == dead or (job.lease and job.lease < now))
        ]
        assert len(lost) == self.rows.jobs.expire(now=now, is_dead=lambda owner: owner == dead)
        for job in lost:
            job.deaths += 1
            self.move(job, Event.BREAK if job.deaths >= MOST_DEATHS else Event.EXPIRE)
            job.due = now

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), event=st.sampled_from(ACTS))
    def act(self, data: st.DataObject, event: Event) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.expected)))
        job, now = self.expected[job_id], self.clock.move(timedelta(seconds=1))
        if (job.state, event) not in TRANSITIONS:
            with pytest.raises(Refused):
                self.rows.jobs.act(job_id, event, actor="p", now=now)
            return
        self.rows.jobs.act(job_id, event, actor="p", now=now)
        self.move(job, event)
        if event in {Event.RETRY, Event.RELEASE, Event.RESTART}:
            job.due, job.deaths = now, 0

    @invariant()
    def agrees(self) -> None:
        """
        State, owner, attempt and due time of every job are what they should be.
        """
        found = {job.id: (job.state, job.owner, job.attempt, job.due) for job in self.rows.listing.jobs().items}

        assert {n: (job.state, job.owner, job.attempt, job.due) for n, job in self.expected.items()} == found

    @invariant()
    def every_state_has_its_event(self) -> None:
        """
        The event log, read alone, ends in the state of each job.
        """
        last = {
            event.job_id: event.detail.get("state", "pending")
            for event in self.rows.listing.events(limit=500)
            if event.job_id
        }
        if self.rows.listing.last_event() < 500:
            assert {n: str(job.state) for n, job in self.expected.items()} == last


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A new ledger for each of many runs."""
    Queue.template = tmp_path_factory.mktemp("queue") / "ledger.db"
    make_ledger(f"sqlite:///{Queue.template}")


class TestQueue(Queue.TestCase):  # type: ignore[misc,valid-type]  # made by hypothesis
    """Any story of the queue."""

    settings = settings(max_examples=12, stateful_step_count=40, deadline=None)

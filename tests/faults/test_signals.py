"""Stopped, ended, killed, short of memory: what services do that are dealt with so by their host."""

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from checker import Checker
from ledger_scu import Freight, LedgerSCU, freight_of
from real import Real
from stage import Pool

from serving import Serving, answers, until
from sink import Sink
from talaria.app import SERVICES
from talaria.model.errors import Congested, TalariaError
from talaria.model.job import State
from talaria.store.schema import events, jobs
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server

MANY = 20


@pytest.fixture
def real(tmp_path: Path, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A home that is set up; nothing runs yet."""
    found = Real(Serving(tmp_path, TALARIA_MAX_ASSOCIATIONS_PER_ADDRESS="64"), far_end, pool)
    found.prepare()
    yield found
    found.serving.abandon()


@pytest.fixture
def at_server(tmp_path: Path, far_end: Sink, pool: Pool, empty_databases: Callable[[], str]) -> Iterator[Real]:
    """The same on PostgreSQL: on SQLite a process that stands still with the pen in its hand holds up all others."""
    found = Real(Serving(tmp_path, url=empty_databases()), far_end, pool)
    found.prepare()
    yield found
    found.serving.abandon()


def only(real: Real, service: str) -> int:
    """The process of a service."""
    (pid,) = until(lambda: real.serving.pids(service), seconds=20, what=service)
    return int(pid)


class Sending(threading.Thread):
    """
    Sends over one association.

    Attributes:
        left: What was not acknowledged, once it has ended.
        scu: With which.
    """

    def __init__(self, scu: LedgerSCU, freights: list[Freight]) -> None:
        super().__init__(name="sending", daemon=True)
        self.scu, self.left, self._freights = scu, list(freights), freights
        self.start()

    def run(self) -> None:
        """Until the end of it or of the files."""
        self.left = self.scu.send(self._freights)


# -- SIGSTOP --


def test_services_that_stand_still(at_server: Real) -> None:
    """
    A dispatcher, a processor and a receiver are stopped in the middle of their work for longer than a lease, while
    others of them run beside: nobody takes their work from them, and when they go on nothing is done twice (case 10).
    """
    real = at_server
    points = ("dispatcher:dispatcher.delivery.prepared", "processor:processor.run.ready")
    real.serving.start()
    stopped = [only(real, "dispatcher"), only(real, "processor"), only(real, "receiver")]
    real.arm(*(f"{point}=stop" for point in points))
    real.send()
    until(lambda: all(map(real.has_fired, points)), seconds=30, what="both at work")
    long = freight_of(synthetic_ct(real.folder / "long", slices=400, seed=77, side=8).paths)
    real.arm("receiver:spool.shelve.asked=stop@20")  # between two transactions: one that stands still holds up all
    sending = Sending(real.scu("STUDY"), long)  # no module: late images make it work once more
    until(lambda: real.has_fired("receiver:spool.shelve.asked"), seconds=30, what="the receiver at work")
    taken = {path.name for path in (real.spool / "new").iterdir()}
    real.serving.launch("receiver", "dispatcher", "processor")
    leases = until(lambda: leases_over(real), seconds=60, what="leases that are over")
    assert sending.is_alive()
    assert taken
    until(lambda: taken.isdisjoint(os.listdir(real.spool / "new")), seconds=60, what="the other receiver's hand")
    assert leases == leases_over(real), "somebody else has a job"
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    sending.join(60)
    real.waiting += sending.left
    assert [] == sending.left, "the association did not stand"
    real.settle(seconds=60)
    assert 0 == count_events(real, "job.expire")
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=0, case="services that stood still")


def leases_over(real: Real) -> list[tuple[int, str]]:
    """Active jobs of which nobody has heard for longer than a lease, and in whose hands they are; none or both."""
    with real.opened() as ledger, ledger.reading() as connection:
        late = jobs.c.lease < datetime.now(UTC) - timedelta(seconds=3)
        found = sa.select(jobs.c.id, jobs.c.owner).where(jobs.c.state == State.ACTIVE, late).order_by(jobs.c.id)
        rows = [(int(row.id), str(row.owner)) for row in connection.execute(found)]
    return rows if len(rows) == 2 else []


def count_events(real: Real, kind: str) -> int:
    """How often it happened."""
    with real.opened() as ledger, ledger.reading() as connection:
        found = sa.select(sa.func.count()).select_from(events).where(events.c.kind == kind)
        return int(connection.execute(found).scalar_one())


# -- SIGTERM --


class Visitor(threading.Thread):
    """
    Has an association, sends an image, and when it may go on another one.

    Attributes:
        stored: How many were acknowledged.
        refused: Whether its second image was.
    """

    def __init__(self, scu: LedgerSCU, freights: list[Freight], go_on: threading.Event) -> None:
        super().__init__(name="visitor", daemon=True)
        self._scu, self._freights, self._go_on = scu, freights, go_on
        self.stored = 0
        self.start()

    def run(self) -> None:
        """One image, a wait, the others."""
        descriptor = os.open(self._scu.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with contextlib.suppress(TalariaError), self._scu._sender(self._freights) as sender:
            for freight in self._freights:
                self.stored += self._scu._send_one(sender, freight, descriptor)
                self._go_on.wait()
        os.close(descriptor)


def test_ended_with_many_associations_open(real: Real) -> None:
    """
    Of twenty associations those that go on come to their end, those that stand still are broken off, and new ones are
    refused for now; it ends in its time, and has all that it acknowledged (case 11).
    """
    real.serving.start()
    go_on, never = threading.Event(), threading.Event()
    visitors = [
        Visitor(real.scu(), freight_of(real.pool.study(number)), never if number % 10 == 0 else go_on)
        for number in range(MANY)
    ]
    until(lambda: all(visitor.stored == 1 for visitor in visitors), seconds=30, what="twenty associations")
    began = time.monotonic()
    os.kill(real.serving.pid, signal.SIGTERM)
    said = until(lambda: refusal(real), seconds=5, what="a refusal")
    go_on.set()
    code = real.serving.processes[0].wait(25)
    took = time.monotonic() - began
    never.set()
    for visitor in visitors:
        visitor.join(30)
    stored = [visitor.stored for visitor in visitors]
    checker = Checker(home=real.folder / "home", url=real.serving.url, books=real.folder / "books", spool=real.spool)
    counts = checker.check(is_over=False)
    counts.expect(duplicates=0, case=f"SIGTERM with {MANY} associations, ended in {took:.1f} s")

    assert 0 == code
    assert "temporary congestion" in said
    assert sorted([1] * 2 + [2] * (MANY - 2)) == sorted(stored)
    assert sum(stored) == counts.acknowledged


def refusal(real: Real) -> str:
    """Why an association is refused for now; empty where it is not."""
    try:
        real.scu().echo()
    except Congested as error:
        return str(error)
    except TalariaError:
        return ""
    return ""


# -- SIGKILL --


def test_services_start_in_any_order(real: Real) -> None:
    """
    After all were killed in the middle of everything, services that start one after the other, the last first, do
    what was left (case 74).
    """
    real.serving.start()
    real.send(studies=5)
    real.serving.kill()
    real.serving.processes = []
    for service in reversed(SERVICES):
        real.serving.launch(service)
        until(lambda: real.serving.pids(service), seconds=30, what=service)  # noqa: B023 - at once
    real.settle(seconds=60)
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=10, case="started in reverse")


def test_lock_of_a_dead_one_is_taken_over(real: Real) -> None:
    """
    A supervisor that was killed leaves a lock that names it; the next one, started in the same moment, takes it over
    and serves, and says so (case 78).
    """
    real.serving.start()
    lock = real.folder / "home" / "serve.lock"
    first = real.serving.pid
    assert f"process {first} " in lock.read_text()
    os.kill(first, signal.SIGKILL)
    second = real.serving.launch()
    until(lambda: f"process {second} " in lock.read_text(), seconds=20, what="the lock")
    until(lambda: answers(real.serving.dicom_port), seconds=20, what="reception")
    real.send()
    real.settle()
    del real.serving.processes[0]
    assert 0 == real.serving.stop()


# -- no memory --


def test_receiver_without_memory(real: Real) -> None:
    """
    A receiver that gets no more memory refuses, drops or takes images later, and what it acknowledges it has; once
    there is memory all go on, also where it died of it (case 77).
    """
    real.serving.start()
    receiver = only(real, "receiver")
    studies = [
        freight_of(synthetic_ct(real.folder / f"large{number}", slices=4, seed=500 + number, side=512).paths)
        for number in range(MANY)
    ]
    go_on = threading.Event()
    guests = [Visitor(real.scu(), study, go_on) for study in studies[::2]]
    until(lambda: all(guest.stored == 1 for guest in guests), seconds=30, what="associations")
    limit = virtual_bytes(receiver) + (24 << 20)  # two or three threads' stacks
    resource.prlimit(receiver, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    senders = [Sending(real.scu(), study) for study in studies[1::2]]
    go_on.set()
    for sender in (*senders, *guests):
        sender.join(60)
    assert not any(sender.is_alive() for sender in (*senders, *guests)), "a sender hangs"
    real.waiting += [freight for sender in senders for freight in sender.left]
    real.waiting += [
        freight for guest, study in zip(guests, studies[::2], strict=True) if guest.stored < 4 for freight in study
    ]
    refused = len(real.waiting)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(receiver, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    real.settle(seconds=90)
    died = "service died" in real.serving.log.read_text()
    assert refused, "it had memory enough"
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=4 * MANY, case=f"no memory: {refused} of {4 * MANY} not taken, died: {died}")


def virtual_bytes(pid: int) -> int:
    """Its address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()

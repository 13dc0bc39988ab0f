"""A whole orchestrator with a listener in one forked child, which dies where it is told to; its like goes on."""

import json
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import sqlalchemy as sa
from checker import Checker, Counts
from ledger_scu import Freight, LedgerSCU, freight_of

from orchestra import Orchestra
from sink import Sink
from talaria import failpoint
from talaria.dimse.scp import Limits, Listener
from talaria.executors.process import Process as ProcessExecutor
from talaria.model.extensions import Delivery, Outcome, Run
from talaria.model.job import Event, Kind, State
from talaria.services.loop import guarded
from talaria.services.receiver import SpoolSink
from talaria.store import schema
from talaria.store.access import Access, CredentialKind
from talaria.store.cases import Cases
from talaria.store.compaction import Compaction
from talaria.store.jobs import Claim
from talaria.store.operations import Operations
from talaria.store.selection import Selection
from talaria.store.spool import new_ulid
from talaria.store.workers import Process, Workers
from talaria.targets.folder import Folder
from talaria.testing import MovedClock, synthetic_ct

SOURCE = Path(__file__).parents[2] / "src" / "talaria"

#: Two kinds of points: named where they stand, and those that a transaction of that name has.
_POINT = re.compile(r'\bfailpoint\("([^"{}]+)"\)')
_WRITING = re.compile(r'\.writing\(\s*"([^"]+)"')

RULEBOOK = """\
settings: {{series_quiet: 10s, study_quiet: 20s, retention: {{done: 3h, discarded: 3h}}}}
targets:
  share: {{kind: beating, path: {home}/out, retry: {{first: 1s, most: 2s}}}}
  results: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: SINK, calling_ae: RESULTS,
    retry: {{first: 1s, most: 2s}}}}
  studies: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: SINK, calling_ae: STUDIES,
    retry: {{first: 1s, most: 2s}}}}
modules:
  same: {{builtin: pass, executor: process}}
rules:
  plain: {{when: "True", action: route, send: [share]}}
  made: {{when: "True", action: process, process: [same], send: [results]}}
  whole: {{when: "True", trigger: study, action: route, send: [studies]}}
"""


def names() -> set[str]:
    """Every fail point of the program."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if path.name != "failpoint.py":
            found |= set(_POINT.findall(text))
        for name in _WRITING.findall(text):
            found |= {f"{name}.written", f"{name}.committed"}
    return found


class Tally(failpoint.Faults):
    """Counts how often each point is passed, and does nothing."""

    def __init__(self) -> None:
        super().__init__("")
        self.counts: Counter[str] = Counter()

    def passed(self, name: str, *, service: str = "") -> None:
        """Count."""
        self.counts[name] += 1


class Copying(ProcessExecutor):
    """Runs what copies its input, without the time that an interpreter takes to start."""

    kind: ClassVar[str] = "process"

    def argv(self, run: Run) -> list[str]:
        """See `Process.argv`."""
        return ["/bin/sh", "-c", f"cp {run.input}/*.dcm {run.output}/"]


class Beating(Folder):
    """A folder; while it delivers, the lease of the job is renewed, as a heart does by the clock."""

    kind: ClassVar[str] = "beating"
    beats: ClassVar[list[Callable[[], object]]] = []

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """See `Folder.deliver`."""
        for beat in self.beats:
            beat()
        yield from super().deliver(delivery)


class Stage(Orchestra):
    """Everything that a home does, errands of administrators included, until nothing is left to do."""

    def __init__(self, home: Path, *, url: str, starts: int) -> None:
        clock = MovedClock()
        clock.move(timedelta(days=1) * starts)
        super().__init__(home, url=url, targets={"beating": Beating}, executors={"process": Copying}, clock=clock)
        Beating.beats[:] = [self.heart.beat]
        self.listener = Listener(
            host="127.0.0.1", port=0, sink=SpoolSink(spool=self.spool, indexer=self.indexer, clock=clock.now),
            guard=guarded, limits=Limits(linger=timedelta(milliseconds=100)),
        )  # fmt: skip

    def recover(self) -> None:
        """What `serve` and its services do when they start, and an administrator about what is held or paused."""
        self.rulebooks.refresh()
        self.spool.sweep()
        self.heart.expire()
        self.processor.tidy()
        self.indexer.adopt_strays()
        operations = Operations(self.ledger, self.rulebooks)
        for pause in operations.paused():
            operations.resume(pause.kind, pause.target, actor="test", now=self.clock.now())
        for job in self.listing.jobs(state=State.HELD, limit=500).items:
            self.jobs.act(job.id, Event.RELEASE, actor="test", now=self.clock.now())

    def run(self, *, again: Sequence[Path], errands: bool) -> None:
        """Work to the end, and past the end of retention; *again* comes a second time meanwhile."""
        self.index()
        for path in again:
            self.store(path)
            stray = new_ulid(self.clock.now())
            (self.home / "spool" / "store" / stray[-2:] / f"{stray}.dcm").touch()
            self.spool.retire(stray)
        self.index()
        if errands:
            self.run_errands(len(again))
        self.wait(timedelta(seconds=48), step=timedelta(seconds=12))
        self.clock.move(timedelta(minutes=70))
        after: int | None = 0
        while after is not None:
            _, after = Compaction(self.ledger).step(after=after, now=self.clock.now(), aged=timedelta(0))
        self.clock.move(timedelta(hours=3))
        self.cleaner.step(self.clock.now())

    def index(self) -> None:
        """Write down what waits, two at a time."""
        while batch := self.indexer.gather(wait=False):
            for number in range(0, len(batch), 2):
                self.indexer.record(batch[number : number + 2])

    def run_errands(self, count: int) -> None:
        """What services say of themselves, what administrators do, and what happens seldom; so many times."""
        self._administer(count)
        cases = Cases(self.ledger)
        for number in self._due(schema.series):  # only a bug would put it off
            cases.postpone_series(number, self.clock.now())
        self.clock.move(timedelta(seconds=15))
        while self.router.step(self.clock.now()):
            pass
        now = self.clock.now()
        for number in self._due(schema.cases):
            cases.postpone_case(number, now)
        operations = Operations(self.ledger, self.rulebooks)
        for _ in range(count):
            operations.pause("dispatch", "share", actor="test", now=now)
            operations.resume("dispatch", "share", actor="test", now=now)
        for job in self.listing.jobs(state=State.PENDING, limit=count).items:
            one = Selection(ids=(job.id,))
            operations.act(one, Event.HOLD, actor="test", now=now)
            operations.act(one, Event.RELEASE, actor="test", now=now)
            self.jobs.act(job.id, Event.HOLD, actor="test", now=now)
            self.jobs.act(job.id, Event.RELEASE, actor="test", now=now)
        for number in range(count):
            self._claim(number)
        self.heart.expire()
        for number in range(count):  # put off now, and by a clock that was set back since
            for ahead in (timedelta(0), timedelta(days=2)):
                claim = self._claim(number)
                if claim is not None:
                    then = self.clock.now() + ahead
                    self.jobs.end(claim, Event.DEFER, now=then, due=then + timedelta(seconds=1), reason="later")
                self.clock.move(timedelta(seconds=61))

    def _due(self, table: sa.Table) -> Sequence[int]:
        """What the router is to look at, now or later."""
        with self.ledger.reading() as connection:
            return connection.execute(sa.select(table.c.id).where(table.c.due.is_not(None))).scalars().all()

    def _claim(self, number: int) -> Claim | None:
        """A worker that is dead already takes a job."""
        owner = f"here/2/{number}"
        return self.jobs.claim(
            Kind.DISPATCH, owner=owner, spools=[self.spool.name], now=self.clock.now(), off_peak=True
        )

    def _administer(self, count: int) -> None:
        now, workers, access = self.clock.now(), Workers(self.ledger), Access(self.ledger)
        for number in range(count):
            own = Process(host="here", pid=number, started="0")
            workers.seen(own, "stage", started=now, now=now)
            workers.gone(own, "stage")
            link = access.issue(
                CredentialKind.LINK, name=f"n{number}", actor="test", now=now, lifetime=timedelta(hours=1)
            )
            access.redeem(link, now=now, session=timedelta(hours=1))
            access.saw(link, now=now)
            access.revoke(kind=CredentialKind.SESSION, name=f"n{number}", actor="test", now=now)
            self.revisions.save(self.rulebooks.running().text, author="test", now=now)
            self.rulebooks.refresh()


class Pool:
    """Small studies of two images, made when they are first asked for."""

    def __init__(self, folder: Path, *, slices: int = 2) -> None:
        self._folder, self._slices = folder, slices
        self._made: dict[int, Sequence[Path]] = {}

    def study(self, number: int) -> Sequence[Path]:
        """The files of one."""
        if number not in self._made:
            made = synthetic_ct(self._folder / str(number), slices=self._slices, seed=number, side=8)
            self._made[number] = made.paths
        return self._made[number]


@dataclass
class Play:
    """One home, in which one child after another works, and is killed."""

    home: Path
    url: str
    sink: Sink
    pool: "Pool"
    starts: int = 0
    used: int = 0
    kills: int = 0
    images_of_a_job: int = 2
    waiting: list[Freight] = field(default_factory=list)

    def prepare(self) -> None:
        """A home with a rulebook."""
        (self.home / "out").mkdir(parents=True)
        stage = Stage(self.home, url=self.url, starts=0)
        stage.apply(RULEBOOK.format(home=self.home, port=self.sink.port))
        stage.ledger.close()

    @property
    def books(self) -> Path:
        """The sender's ledger."""
        return self.home / "books"

    def act(self, studies: int, *, armed: str = "", errands: bool = False) -> int:
        """Fresh studies come, and a child works on all there is; its exit code, negative for a signal."""
        fresh = [path for number in range(self.used, self.used + studies) for path in self.pool.study(number)]
        self.used, self.starts = self.used + studies, self.starts + 1
        self._litter(studies)
        port, go_on = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go_on[1])
            self._be_child(armed, fresh, port[1], go_on[0], errands=errands)
        os.close(port[1])
        os.close(go_on[0])
        self._send(fresh, port[0])
        os.close(go_on[1])
        return self._end(pid, armed)

    def _litter(self, count: int) -> None:
        """What a receiver that died left, and what nobody can read."""
        for number in range(count):
            name = f"{self.starts:013d}{number:013d}"
            (self.home / "spool" / "tmp" / f"{name}.1-0").touch()
            (self.home / "spool" / "new" / f"{name}.dcm").write_bytes(b"no instance")

    def _send(self, fresh: Sequence[Path], port: int) -> None:
        with os.fdopen(port, "rb") as pipe:
            number = int(pipe.readline() or 0)
        self.waiting += freight_of(fresh)
        if not number:
            return  # it died before it listened
        scu = LedgerSCU(number, self.books)
        wrong = [Freight(freight.found, claimed_uid="1.2.3.4") for freight in self.waiting]
        self.waiting = scu.send(self.waiting)
        scu.send(wrong)

    def _end(self, pid: int, armed: str) -> int:
        deadline = time.monotonic() + 60
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError(f"{armed or 'a child'} hangs")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        self.kills += code == -signal.SIGKILL
        log = self.home / "child.log"
        assert code in {0, -signal.SIGKILL}, log.read_text()[-3000:]
        return code

    def _be_child(self, armed: str, fresh: Sequence[Path], port: int, go_on: int, *, errands: bool) -> None:
        """Never returns."""
        code = 1
        log = os.open(self.home / "child.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            sys.stdout = sys.stderr = os.fdopen(os.dup(log), "w", buffering=1)
            failpoint.arm(armed)
            tally = Tally()
            if not armed:
                failpoint._Place.faults = tally
            stage = Stage(self.home, url=self.url, starts=self.starts)
            stage.recover()
            stage.listener.start()
            os.write(port, f"{stage.listener.port}\n".encode())
            os.read(go_on, 1)
            stage.listener.stop()
            stage.run(again=fresh, errands=errands)
            (self.home / "tally").write_text(json.dumps(tally.counts))
            code = 0
        except BaseException:  # noqa: BLE001 - told, and then the child is over
            os.write(log, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def tally(self) -> dict[str, int]:
        """How often the last child that lived passed each point."""
        found: dict[str, int] = json.loads((self.home / "tally").read_text())
        return found

    def check(self) -> Counts:
        """Everything at its place, after a child that nobody killed."""
        assert not self.waiting, f"{len(self.waiting)} were never acknowledged"
        return Checker(
            home=self.home, url=self.url, books=self.books, folders=[self.home / "out"], journals=[self.sink.copies()]
        ).check()

"""What ends while the ledger is away is not forgotten, whoever dies, and nothing is done again that was done."""

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa

from cable import Cable
from orchestra import Orchestra, files_of
from serving import until
from talaria import failpoint
from talaria.model.extensions import Delivery, Executor, Exit, Findings, Outcome, Run, Standing, Stop, Target
from talaria.model.job import Event, Job, Kind, State
from talaria.services.loop import Books, Heart
from talaria.store.jobs import LEASE
from talaria.store.journal import Ended, Journal
from talaria.store.schema import deliveries, events, jobs, outcomes, runs
from talaria.store.workers import Process
from talaria.testing import MovedClock, synthetic_ct

SECOND = timedelta(seconds=1)
IMAGES = 5
ROUTE = """
settings: {{series_quiet: 10s}}
targets: {{out: {{kind: counting, book: {home}/book, retry: {{first: 1s, most: 2s}}}}}}
rules: {{all: {{when: "True", send: [out]}}}}
"""
PROCESS = """
settings: {{series_quiet: 10s}}
targets: {{out: {{kind: folder, path: {home}/out}}}}
modules: {{copy: {{builtin: pass}}}}
rules: {{all: {{when: "True", action: process, process: [copy], send: [out], keep_inputs: true}}}}
"""


class Counting(Target):
    """A target that writes down each image it is given, and then lets the test do something."""

    kind: ClassVar[str] = "counting"
    meanwhile: ClassVar[Callable[[int], None]]

    book: Path
    """Where."""
    refuses: int = 0
    """The number of an image that it will not have."""

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """One after the other."""
        for number, parcel in enumerate(delivery.parcels, start=1):
            if number == self.refuses:
                yield Outcome(instance_id=parcel.instance_id, standing=Standing.FAILED, detail="not this one")
                continue
            with self.book.open("a") as book:
                book.write(f"{parcel.sop_instance_uid}\n")
            yield Outcome(instance_id=parcel.instance_id, standing=Standing.SENT, status=0)
            type(self).meanwhile(number)

    def check(self) -> Findings:
        """Nothing to reach."""
        return ()


class Copying(Executor):
    """An executor that passes its input on, and lets the test do something meanwhile."""

    kind: ClassVar[str] = "process"
    meanwhile: ClassVar[Callable[[], None]]

    def submit(self, run: Run) -> str:
        """Copy."""
        for path in run.input.glob("*.dcm"):
            shutil.copyfile(path, run.output / path.name)
        (run.output / "result.json").write_text('{"volume": 3}')
        type(self).meanwhile()
        return ""

    def follow(self, handle: str, run: Run, *, stop: Stop) -> Exit:
        """All went well."""
        return Exit(code=0, reason="", log="copied")


class Scene:
    """One home, whose services start anew as often as a test likes."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url, self.clock = home, url, MovedClock()
        (home / "out").mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """The services of a process begin."""
        self.orchestra = Orchestra(
            self.home, url=self.url, targets={"counting": Counting}, executors={"process": Copying}, clock=self.clock
        )
        self.cable = Cable(self.orchestra.ledger)
        Counting.meanwhile = lambda _: None
        Copying.meanwhile = lambda: None

    def die(self) -> None:
        """They end; their journal is anybody's now."""
        self.orchestra.books.close()
        self.orchestra.ledger.close()

    def begin(self, book: str) -> None:
        """A job is due."""
        self.orchestra.apply(book.format(home=self.home))
        self.orchestra.receive(synthetic_ct(self.home / "ct", slices=IMAGES, side=8).paths)
        self.clock.move(11 * SECOND)
        assert self.orchestra.router.step(self.clock.now())

    def pull_after(self, image: int, *, stop: bool = True) -> None:
        """The ledger goes away when so many images are delivered; the service is stopped at the last."""

        def meanwhile(number: int) -> None:
            self.clock.move(SECOND)  # each outcome is written down by itself
            if number == image:
                self.cable.pull()
            if number == IMAGES and stop:
                self.orchestra.heart.stopping.set()

        Counting.meanwhile = meanwhile

    def deliver(self) -> None:
        """One step of the dispatcher."""
        self.orchestra.dispatcher.step(self.clock.now())

    def job(self, job_id: int = 1) -> Job:
        """As the ledger has it."""
        return self.orchestra.jobs.show(job_id)

    def sent(self) -> list[int]:
        """How often each image was sent."""
        return sorted(Counter((self.home / "book").read_text().split()).values())

    def standings(self) -> dict[str, int]:
        """How many outcomes of each kind the ledger has."""
        with self.orchestra.ledger.reading() as connection:
            return dict(
                connection.execute(sa.select(outcomes.c.standing, sa.func.count()).group_by(outcomes.c.standing)).all()
            )

    def count_events(self, kind: str) -> int:
        """How many events of a kind there are."""
        with self.orchestra.ledger.reading() as connection:
            return connection.execute(
                sa.select(sa.func.count()).select_from(events).where(events.c.kind == kind)
            ).scalar_one()

    def journals(self, suffix: str = "journal") -> list[Path]:
        """Files of the journal."""
        return sorted((self.home / "journal").glob(f"*.{suffix}"))


@pytest.fixture
def scene(tmp_path: Path, ledger_url: str) -> Iterator[Scene]:
    """A home on each database."""
    found = Scene(tmp_path, ledger_url)
    yield found
    found.die()


# -- deliveries --


@pytest.mark.parametrize("image", [1, 3, IMAGES])
def test_delivery_goes_on_and_is_replayed(scene: Scene, image: int) -> None:
    """
    A delivery that began is finished without the ledger; the next process writes it down, and nothing is sent again.
    """
    scene.begin(ROUTE)
    scene.pull_after(image)
    scene.deliver()
    scene.die()
    scene.start()
    before = scene.job()
    assert scene.orchestra.heart.recover()
    scene.orchestra.wait(timedelta(minutes=1))

    assert (State.ACTIVE, State.DONE, {"sent": IMAGES}) == (before.state, scene.job().state, scene.standings())
    assert [1] * IMAGES == scene.sent()
    assert [] == scene.journals()
    assert 1 == scene.count_events("job.finish")


def test_sums_are_as_if_it_had_never_been_away(scene: Scene) -> None:
    """
    Bytes and seconds of a delivery count once, however often its journal is replayed.
    """
    scene.begin(ROUTE)
    scene.pull_after(2)
    scene.deliver()
    (journal,) = scene.journals()
    shutil.copy(journal, scene.home / "again")
    scene.die()
    scene.start()
    scene.orchestra.heart.recover()
    shutil.copy(scene.home / "again", journal)
    scene.orchestra.heart.recover()

    with scene.orchestra.ledger.reading() as connection:
        row = connection.execute(sa.select(deliveries)).one()
        size = connection.execute(sa.text("SELECT sum(size_bytes) FROM instances")).scalar_one()
        times = connection.execute(sa.select(outcomes.c.times_sent)).scalars().all()
    assert (IMAGES, IMAGES - 1.0, size, [1] * IMAGES) == (row.sent, row.seconds, row.size_bytes, times)
    assert (1, []) == (scene.count_events("job.finish"), scene.journals())


def test_refused_image_fails_the_delivery_without_the_ledger(scene: Scene) -> None:
    """
    What a target refuses while the ledger is away fails the job as it would have with it.
    """
    scene.begin(ROUTE.replace("{home}/book,", "{home}/book, refuses: 4,"))
    scene.pull_after(1)
    scene.deliver()
    scene.die()
    scene.start()
    scene.orchestra.heart.recover()

    assert (State.FAILED, "1 of 5 instances cannot be delivered: not this one") == (
        scene.job().state,
        scene.job().reason,
    )
    assert {"sent": IMAGES - 1, "failed": 1} == scene.standings()


def test_earlier_attempts_count_without_the_ledger(scene: Scene) -> None:
    """
    A delivery of which a part is there already is whole when the rest is, though the ledger cannot be asked.
    """
    scene.begin(ROUTE)

    def stop(number: int) -> None:
        scene.clock.move(SECOND)
        if number == 2:
            scene.orchestra.heart.stopping.set()

    Counting.meanwhile = stop
    scene.deliver()
    assert (State.PENDING, {"sent": 3}) == (scene.job().state, scene.standings())
    scene.orchestra.heart.stopping.clear()

    def pull(number: int) -> None:
        scene.cable.pull()
        if number == IMAGES - 3:
            scene.orchestra.heart.stopping.set()

    Counting.meanwhile = pull
    scene.deliver()
    scene.die()
    scene.start()
    scene.orchestra.heart.recover()

    assert (State.DONE, {"sent": IMAGES}, [1] * IMAGES) == (scene.job().state, scene.standings(), scene.sent())


def test_living_process_writes_down_when_the_ledger_is_back(scene: Scene) -> None:
    """
    A process that lives through an absence needs nobody to start it again, and leaves nothing in its journal.
    """
    scene.begin(ROUTE)
    scene.pull_after(1, stop=False)
    lane = threading.Thread(target=scene.deliver)
    lane.start()
    until(lambda: len(scene.orchestra.books._journal.entries()) == IMAGES, seconds=20, what="the end in the journal")
    scene.cable.plug()
    lane.join(20)

    assert not lane.is_alive()
    assert (State.DONE, {"sent": IMAGES}, [1] * IMAGES) == (scene.job().state, scene.standings(), scene.sent())
    assert [0] == [path.stat().st_size for path in scene.journals()]


def test_heart_settles_what_waits(scene: Scene) -> None:
    """
    Outcomes of a delivery that still goes on are written down as soon as the ledger is back, not at its end.
    """
    scene.begin(ROUTE)
    seen: list[tuple[bool, dict[str, int]]] = []

    def meanwhile(number: int) -> None:
        scene.clock.move(SECOND)
        if number == 1:
            scene.cable.pull()
        if number == 3:
            scene.cable.plug()
            scene.orchestra.heart.recover()
            seen.append((scene.orchestra.books.is_behind, scene.standings()))

    Counting.meanwhile = meanwhile
    scene.deliver()

    assert [(False, {"sent": 3})] == seen
    assert (State.DONE, {"sent": IMAGES}) == (scene.job().state, scene.standings())


def test_lost_answer_of_a_commit_counts_once(scene: Scene) -> None:
    """
    Outcomes whose commit went well though nobody heard of it are not counted twice by the replay.
    """
    scene.begin(ROUTE)

    def meanwhile(number: int) -> None:
        scene.clock.move(SECOND)
        scene.cable.loses_answers = number == 2 or scene.cable.loses_answers
        if number == IMAGES:
            scene.orchestra.heart.stopping.set()

    Counting.meanwhile = meanwhile
    scene.deliver()
    scene.die()
    scene.start()
    scene.orchestra.heart.recover()

    with scene.orchestra.ledger.reading() as connection:
        times = connection.execute(sa.select(outcomes.c.times_sent)).scalars().all()
    assert (State.DONE, [1] * IMAGES) == (scene.job().state, times)


def test_full_disk_stops_the_delivery_and_forgets_nothing(scene: Scene) -> None:
    """
    Where neither ledger nor journal can be written, no more is sent than can be remembered; what was sent is known.
    """
    scene.begin(ROUTE)
    (scene.home / "journal").write_text("no folder")

    def meanwhile(number: int) -> None:
        scene.clock.move(SECOND)
        if number == 2:
            scene.cable.pull()

    Counting.meanwhile = meanwhile
    lane = threading.Thread(target=scene.deliver)
    lane.start()
    until(lambda: len(scene.orchestra.books._journal.entries()) == 2, seconds=20, what="an outcome and the end")
    scene.cable.plug()
    lane.join(20)

    assert (State.DEFERRED, {"sent": 3}, [1] * 3) == (scene.job().state, scene.standings(), scene.sent())
    Counting.meanwhile = lambda _: None
    scene.orchestra.wait(timedelta(minutes=1))
    assert (State.DONE, [1] * IMAGES) == (scene.job().state, scene.sent())


# -- killed --


@pytest.mark.parametrize(
    ("point", "hit", "twice"),
    [
        ("journal.file.named", 1, 2),  # the first two, which were to be written down together
        *((f"journal.entry.{moment}", hit, 0) for moment in ("written", "synced") for hit in (1, 2, IMAGES)),
    ],
)
def test_killed_with_a_journal(tmp_path: Path, ledger_url: str, point: str, hit: int, twice: int) -> None:
    """
    A process is killed at any moment of its journal: what is in that is not done again, nor is anything lost.
    """
    scene = Scene(tmp_path, ledger_url)
    scene.begin(ROUTE)
    scene.die()
    pid = os.fork()
    if not pid:
        try:
            scene.start()
            scene.pull_after(1)
            failpoint.arm(f"{point}=kill@{hit}")
            scene.deliver()
        finally:
            os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    scene.start()
    scene.orchestra.heart.recover()
    scene.orchestra.heart.expire()
    scene.orchestra.wait(timedelta(minutes=1))

    assert (State.DONE, {"sent": IMAGES}) == (scene.job().state, scene.standings())
    assert [1] * (IMAGES - twice) + [2] * twice == scene.sent()
    assert [] == scene.journals()
    scene.die()


@pytest.mark.parametrize("point", ["deliveries.record.written", "deliveries.record.committed", "jobs.end.written",
                                   "jobs.end.committed", "journal.file.removed"])  # fmt: skip
def test_killed_while_it_replays(tmp_path: Path, ledger_url: str, point: str) -> None:
    """
    A process killed while it replays a journal leaves it to the next one; twice is as once.
    """
    scene = Scene(tmp_path, ledger_url)
    scene.begin(ROUTE)
    scene.pull_after(1)
    scene.deliver()
    scene.die()
    pid = os.fork()
    if not pid:
        try:
            scene.start()
            failpoint.arm(f"{point}=kill")
            scene.orchestra.heart.recover()
        finally:
            os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    scene.start()
    scene.orchestra.heart.recover()

    with scene.orchestra.ledger.reading() as connection:
        times = connection.execute(sa.select(outcomes.c.times_sent)).scalars().all()
    assert (State.DONE, [1] * IMAGES, 1) == (scene.job().state, times, scene.count_events("job.finish"))
    assert [] == scene.journals()
    scene.die()


# -- overtaken --


def test_overtaken_end_keeps_its_outcomes(scene: Scene) -> None:
    """
    An end that comes too late changes no state, but what was sent is known, and is not sent again.
    """
    scene.begin(ROUTE)
    scene.pull_after(1)
    scene.deliver()
    scene.die()
    scene.start()
    scene.orchestra.jobs.expire(now=scene.clock.now(), is_dead=lambda _: True)  # by a host that cannot see our journal
    assert scene.orchestra.heart.recover()
    overtaken = scene.job()
    scene.orchestra.wait(timedelta(minutes=1))

    assert (State.PENDING, {"sent": IMAGES}) == (overtaken.state, scene.standings())
    assert (State.DONE, [1] * IMAGES, 2) == (scene.job().state, scene.sent(), scene.job().attempt)
    assert [] == scene.journals()


def test_end_of_a_cancelled_job_changes_nothing(scene: Scene) -> None:
    """
    A job that a person cancelled before its end was replayed stays cancelled.
    """
    scene.begin(ROUTE)
    scene.pull_after(1)
    scene.deliver()
    scene.die()
    scene.start()
    scene.orchestra.jobs.act(1, Event.CANCEL, actor="p", now=scene.clock.now())
    scene.orchestra.heart.recover()

    assert (State.CANCELLED, {"sent": IMAGES}, []) == (scene.job().state, scene.standings(), scene.journals())


def test_nobody_is_taken_for_dead_while_a_journal_is_replayed(scene: Scene) -> None:
    """
    Who finds another process at the journals leaves the jobs of the dead alone: their ends are on their way.
    """
    scene.begin(ROUTE)
    scene.pull_after(1)
    scene.deliver()
    scene.die()
    scene.start()
    other = Journal(scene.home / "journal", clock=scene.clock.now)
    with other.left() as left:
        assert left is not None
        assert 1 == len(left)
        heart = scene.orchestra.heart
        assert not heart.recover()
        heart.turn()

        assert State.ACTIVE is scene.job().state
    heart.turn()
    assert State.DONE is scene.job().state


# -- processing --


def test_run_that_ends_without_the_ledger_is_replayed(scene: Scene) -> None:
    """
    Run, results and what follows from them come into the ledger with the next process; nothing runs again.
    """
    scene.begin(PROCESS)

    def meanwhile() -> None:
        scene.cable.pull()
        scene.orchestra.heart.stopping.set()

    Copying.meanwhile = meanwhile
    scene.orchestra.processor.step(scene.clock.now())
    folders = scene.orchestra.spool.folders()
    scene.die()
    scene.start()
    Copying.meanwhile = lambda: pytest.fail("it ran again")
    for _ in range(2):
        assert scene.orchestra.heart.recover()
    scene.orchestra.processor.tidy()
    scene.orchestra.wait(timedelta(minutes=1))

    with scene.orchestra.ledger.reading() as connection:
        ran = connection.execute(sa.select(runs.c.module, runs.c.code, runs.c.log)).all()
        states = connection.execute(sa.select(jobs.c.kind, jobs.c.state).order_by(jobs.c.id)).all()
        value = connection.execute(sa.text("SELECT value FROM results")).scalar_one()
    assert [("copy", 0, "copied")] == [tuple(row) for row in ran]
    assert [("process", "done"), ("dispatch", "done"), ("dispatch", "done")] == [tuple(row) for row in states]
    assert ('{"volume":3}', 1) == (value, scene.count_events("module.ran"))
    assert (["job-1-1"], []) == (folders, scene.orchestra.spool.folders())
    assert IMAGES == len(files_of(scene.home / "out"))


def test_results_of_an_overtaken_run_go(scene: Scene) -> None:
    """
    What a run made whose end came too late belongs to nobody, and is removed.
    """
    scene.begin(PROCESS)

    def meanwhile() -> None:
        scene.cable.pull()
        scene.orchestra.heart.stopping.set()

    Copying.meanwhile = meanwhile
    scene.orchestra.processor.step(scene.clock.now())
    scene.die()
    scene.start()
    scene.orchestra.jobs.act(1, Event.CANCEL, actor="p", now=scene.clock.now())
    scene.orchestra.heart.recover()
    scene.orchestra.processor.tidy()

    store = list((scene.home / "spool" / "store").rglob("*.dcm"))
    assert (State.CANCELLED, IMAGES, []) == (scene.job().state, len(store), scene.orchestra.spool.folders())


# -- the heart --


class Host:
    """A process of some host, with a heart, on a ledger that others share."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.name, self.jobs, self.clock = name, scene.orchestra.jobs, scene.clock
        self.spool = scene.orchestra.spool.name
        books = Books(scene.orchestra.ledger, Journal(scene.home / name, clock=scene.clock.now))
        self.works, own = ExitStack(), Process.own()
        self.owner = f"{name}/{own.pid}/{own.started}"
        self.heart = Heart(self.jobs, books=books, host=name, owner=self.owner, clock=scene.clock.now)

    def claim(self) -> None:
        """Take the job, and work on it from now on."""
        claim = self.jobs.claim(
            Kind.DISPATCH, owner=self.owner, spools=[self.spool], now=self.clock.now(), off_peak=True
        )  # fmt: skip
        assert claim is not None
        self.works.enter_context(self.heart.holding(claim))


def turn(scene: Scene, *hosts: Host, seconds: int) -> None:
    """Let time pass, and these hearts beat every four seconds of it."""
    for _ in range(seconds // 4):
        scene.clock.move(4 * SECOND)
        for host in hosts:
            host.heart.turn()


def test_absence_of_the_ledger_kills_nobody(scene: Scene) -> None:
    """
    After an absence that was longer than any lease, a worker of another host that lives keeps its job.
    """
    scene.begin(ROUTE)
    worker, other = Host(scene, "worker"), Host(scene, "other")
    worker.claim()
    turn(scene, worker, other, seconds=40)
    scene.cable.pull()
    turn(scene, worker, other, seconds=600)
    scene.cable.plug()
    turn(scene, other, seconds=4)  # the other one is back first
    turn(scene, worker, other, seconds=60)

    assert (State.ACTIVE, worker.owner, 1) == (scene.job().state, scene.job().owner, scene.job().attempt)


def test_worker_that_died_in_an_absence_is_found(scene: Scene) -> None:
    """
    A worker of another host that was not heard of within a lease's time after the absence has lost its job.
    """
    scene.begin(ROUTE)
    worker, other = Host(scene, "worker"), Host(scene, "other")
    worker.claim()
    turn(scene, worker, other, seconds=40)
    scene.cable.pull()
    turn(scene, other, seconds=600)
    scene.cable.plug()
    turn(scene, other, seconds=12)
    waiting = scene.job().state
    turn(scene, other, seconds=int(LEASE.total_seconds()))

    assert (State.ACTIVE, State.PENDING) == (waiting, scene.job().state)


def test_new_process_kills_nobody(scene: Scene) -> None:
    """
    A process that starts in the very moment the ledger is back, and knows nothing of its absence, is patient, too.
    """
    scene.begin(ROUTE)
    worker = Host(scene, "worker")
    worker.claim()
    scene.clock.move(timedelta(minutes=10))
    other = Host(scene, "other")
    turn(scene, other, seconds=4)
    turn(scene, worker, other, seconds=60)

    assert State.ACTIVE is scene.job().state


def test_claim_whose_answer_was_lost_is_given_back(scene: Scene) -> None:
    """
    A job that the ledger gave us though we never heard of it is due again at once, and the attempt does not count.
    """
    scene.begin(ROUTE)
    host = Host(scene, "here")
    scene.orchestra.jobs.claim(
        Kind.DISPATCH, owner=host.owner, spools=[host.spool], now=scene.clock.now(), off_peak=True
    )  # fmt: skip
    turn(scene, host, seconds=4)
    first = scene.job().state
    turn(scene, host, seconds=4)

    assert (State.ACTIVE, State.PENDING, 0) == (first, scene.job().state, scene.job().attempt)


def test_lost_claim_sends_nothing_again(scene: Scene) -> None:
    """
    Where the server crashed and forgot that we claimed a job, its outcomes are written down before anybody here claims.
    """
    scene.begin(ROUTE)
    scene.pull_after(1)
    scene.deliver()
    scene.orchestra.heart.stopping.clear()
    scene.cable.plug()
    with scene.orchestra.ledger.writing("test") as connection:
        connection.execute(sa.update(jobs).values(state="pending", attempt=0, owner=None, lease=None, ready=True))
    end = scene.orchestra.books._journal.entries()[-1]
    assert isinstance(end, Ended)
    scene.deliver()  # nothing is begun while the end of the first attempt is with another lane
    before = scene.job().state
    scene.orchestra.books.forget(end)
    scene.deliver()

    assert (State.PENDING, State.DONE, [1] * IMAGES) == (before, scene.job().state, scene.sent())

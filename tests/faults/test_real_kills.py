"""One `talaria serve`: a service is killed at each of its fail points, and all goes on with no hand on it."""

import os
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from real import RULEBOOK, Real
from stage import Pool, names

from serving import Serving, answers, until
from sink import Sink

pytestmark = pytest.mark.server

#: Which service passes which points when a study comes, by the beginning of their names.
SERVICES = {
    "receiver": ("acceptor.", "arrivals.record", "spool.arriving.", "spool.shelve.", "spool.forget."),
    "router": ("router.series", "cases.series"),
    "study router": ("router.study", "cases.study"),
    "processor": (
        "jobs.claim", "jobs.end", "process.", "processor.", "results.run", "spool.adopt.", "spool.folder.",
        "spool.link.",
    ),
    "dispatcher": ("jobs.claim", "jobs.end", "deliveries.", "dispatcher.", "dicom.", "folder."),
    "bookkeeper": ("notes.set", "workers.seen"),
    "cleaner": ("cleaner.", "cleaning.", "spool.drop."),
    "web": ("revisions.save",),
    "ruled router": ("revisions.cache",),
}  # fmt: skip

#: What a study does not bring about, by the beginning of the names, and where it is tried.
ELSEWHERE = {
    "access.": "people's: test_kill_points",
    "backup.": "an administrator's: tests/store/test_backup.py",
    "restore.": "an administrator's: tests/store/test_backup.py",
    "cases.chosen": "a person's choice for a case: tests/store/test_operations.py",
    "compare.": "after a restore: tests/store/test_reconciling.py",
    "journal.": "with the ledger away: test_absence, tests/store/test_journal.py",
    "operations.told": "what a person is told of: tests/store/test_operations.py",
    "pruning.": "after weeks: tests/store/test_pruning.py",
    "redirection.": "a person's choice for a study: tests/store/test_operations.py",
    "operations.": "people's: test_kill_points",
    "compaction.": "ten minutes after the end: test_kill_points",
    "cases.postpone": "only after a bug: test_kill_points",
    "jobs.act": "people's: test_kill_points",
    "jobs.expire": "after a death, which the others bring about: test_kill_points",
    "jobs.heartbeat": "only of jobs of many seconds: test_kill_points",
    "jobs.mend": "after a step of the clock: test_kill_points",
    "jobs.promote": "after a deferral: test_kill_points",
    "ledger.": "when a home is made: test_kill_points",
    "migration.": "when a home is made: test_kill_points",
    "receiver.stray": "at the start after a death: test_kill_points",
    "spool.aside": "only of what nobody can read: test_kill_points",
    "spool.create": "when a home is made: test_kill_points",
    "spool.retire": "only of what nobody can use: test_kill_points",
    "spool.sweep": "at the start after a death: test_kill_points",
    "spool.arriving.discarded": "only of what is refused: test_kill_points",
    "supervisor.": "below",
    "workers.gone": "at the end only: test_kill_points",
}

#: A service that dies again and again is started ever later; so often all of them die under one `talaria serve`.
_ROUNDS_OF_ONE = 4
_GROUPS = 4
LONGEST_SECONDS = 30


def rounds() -> list[dict[str, str]]:
    """In each round every service dies at one of its points; services, and their points."""
    known = sorted(name for name in names() if not name.startswith(tuple(ELSEWHERE)))
    rows = {service: [name for name in known if name.startswith(starts)] for service, starts in SERVICES.items()}
    longest = max(map(len, rows.values()))
    return [{service: row[number] for service, row in rows.items() if number < len(row)} for number in range(longest)]


def test_every_point_has_a_service() -> None:
    """
    Each point is tried here, or it is said where.
    """
    tried = {name for chosen in rounds() for name in chosen.values()}

    assert set() == {name for name in names() - tried if not name.startswith(tuple(ELSEWHERE))}


@pytest.fixture
def real(tmp_path: Path, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A home that is set up; nothing runs yet."""
    found = Real(Serving(tmp_path), far_end, pool)
    found.prepare()
    yield found
    found.serving.abandon()


def entry(service: str, name: str) -> str:
    """As a point is armed."""
    return f"{service.rpartition(' ')[2]}:{name}"


def provoke(real: Real, chosen: Mapping[str, str]) -> None:
    """Let happen what brings the services to their points."""
    if "cleaner" in chosen:
        real.send()
        real.settle()
        (pid,) = until(lambda: real.serving.pids("cleaner"), seconds=20, what="the cleaner")
        time.sleep(1.1)  # retention
        os.kill(pid, signal.SIGKILL)  # it looks at once when it starts
    if "web" in chosen or "ruled router" in chosen:
        put_rulebook(real)
    if "study router" in chosen:
        real.send(calling_ae="STUDY")
    real.send(repeats=any(name.startswith("spool.forget") for name in chosen.values()))


def put_rulebook(real: Real) -> None:
    """Save the rulebook as it is by the API; a server that dies of it is what is tried."""
    until(lambda: answers(real.serving.web_port), seconds=30, what="the pages")  # it may have died just before
    text = RULEBOOK.format(folder=real.folder, port=real.far_end.port)
    request = urllib.request.Request(
        f"http://127.0.0.1:{real.serving.web_port}/api/v1/rulebook", data=text.encode(), method="PUT",
        headers={"Authorization": f"Bearer {real.serving.token}", "Content-Type": "application/yaml", "If-Match": "*"},
    )  # fmt: skip
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except OSError:
        pass


def kill_at(real: Real, chosen: Mapping[str, str], *, hit: int = 1, sends: int = 1) -> float:
    """Kill services, each at its point; seconds from the last death to rest."""
    entries = [entry(service, name) for service, name in chosen.items()]
    real.arm(*(f"{one}=kill@{hit}" for one in entries))
    for _ in range(sends):
        provoke(real, chosen)
        deadline = time.monotonic() + 30 / sends  # one of which much is asked is started again ever later
        while time.monotonic() < deadline and not all(map(real.has_fired, entries)):
            real.waiting = real.scu().send(real.waiting) if real.waiting else []
            time.sleep(0.05)
    assert [] == [one for one in entries if not real.has_fired(one)], f"never passed, hit {hit}"
    real.kills += len(entries)
    return real.settle(seconds=LONGEST_SECONDS)


@pytest.mark.parametrize("group", range(_GROUPS))
def test_services_killed_at_each_of_their_points(group: int, real: Real) -> None:
    """
    Whichever service dies at whichever point, and the others with it, the study in hand and the next go all the way
    within 30 s: 0 lost, each job once, at most the images of one job twice for each kill.
    """
    slowest = 0.0
    for number, chosen in enumerate(rounds()[group::_GROUPS]):
        if number % _ROUNDS_OF_ONE == 0:
            if number:
                assert 0 == real.serving.stop()
            real.serving.start()
        slowest = max(slowest, kill_at(real, chosen))
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=2 * real.kills, case=f"{real.kills} kills, slowest back in {slowest:.1f} s")


@pytest.mark.parametrize("name", ["supervisor.service.forked", "supervisor.service.born"])
def test_supervisor_killed_when_it_forks(name: str, real: Real) -> None:
    """
    A supervisor that dies takes all with it, and the next start goes on; a service that dies at birth is born again.
    """
    real.serving.start()
    real.send()
    real.serving.kill()
    real.arm(f"{name}=kill@3" if name.endswith("forked") else f"{name}=kill")
    real.serving.launch()
    until(lambda: real.has_fired(name), seconds=20, what=name)
    if name.endswith("forked"):
        assert -signal.SIGKILL == real.serving.processes[-1].wait(10)
        real.serving.start()
    real.settle()
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=2, case=name)


@pytest.mark.soak
@pytest.mark.parametrize("hit", [1, 2, 10])
def test_one_service_killed_at_a_time(hit: int, real: Real) -> None:
    """
    Each service alone, at the first, second and tenth hit of each of its points; as many studies come as that takes.
    """
    slowest = 0.0
    for chosen in rounds():
        real.serving.start()
        for service, name in chosen.items():
            slowest = max(slowest, kill_at(real, {service: name}, hit=hit, sends=hit))
        assert 0 == real.serving.stop()
    case = f"hit {hit}: {real.kills} kills, slowest back in {slowest:.1f} s"
    real.check().expect(duplicates=2 * real.kills, case=case)

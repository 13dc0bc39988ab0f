"""Killed at every named fail point, at its first, second and tenth hit; the next process goes on, and all is well."""

import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from stage import Play, Pool, names

from sink import Sink, sink
from talaria import failpoint
from talaria.store.ledger import Ledger
from talaria.store.spool import Spool
from talaria.testing import MovedClock

HITS = (1, 2, 10)

#: Rooms whose points are passed by what administrators do.
WITH_ERRANDS = ("access", "cases", "jobs", "operations", "revisions", "workers")
STUDIES = 3

#: Points that a home at work never passes, by the beginning of their names; and where they are tried instead.
ELSEWHERE = {
    "journal.": "the ledger is never away here: tests/services/test_ledger_away",
    "supervisor.": "no supervisor here: test_real_kills",
    "spool.create.": "a spool is made once: test_killed_while_a_home_is_made",
    "ledger.migrate": "once at each start: test_killed_while_a_home_is_made",
    "migration.": "once at each start: test_killed_while_a_home_is_made",
    "backup.": "an administrator's: tests/store/test_backup.py",
    "restore.": "an administrator's: tests/store/test_backup.py",
    "cases.chosen": "a person's choice for a case: tests/store/test_operations.py",
    "compare.": "after a restore: tests/store/test_reconciling.py",
    "operations.told": "what a person is told of: tests/store/test_operations.py",
    "pruning.": "after weeks: tests/store/test_pruning.py",
    "redirection.": "a person's choice for a study: tests/store/test_operations.py",
    "compaction.finish": "only of a delivery of thousands: tests/store/test_compaction.py",
}

#: Points that one process passes only so often, by the beginning of their names.
SELDOM = {"compaction.": 1}
ROOMS = sorted({name.partition(".")[0] for name in names() if not name.startswith(tuple(ELSEWHERE))})


@pytest.fixture(scope="session")
def passes(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> dict[str, int]:
    """How often each point is passed while `STUDIES` studies go all the way."""
    folder = tmp_path_factory.mktemp("tally")
    with sink(folder) as far_end:
        play = Play(folder / "home", f"sqlite:///{folder}/home/ledger.db", far_end, pool)
        play.prepare()
        assert 0 == play.act(STUDIES, errands=True)
        return play.tally()


def test_every_point_is_passed(passes: dict[str, int]) -> None:
    """
    A point that nothing comes by is a point where nothing is tried.
    """
    missed = {name for name in names() - passes.keys() if not name.startswith(tuple(ELSEWHERE))}

    assert set() == missed


@pytest.fixture
def play(tmp_path: Path, ledger_url: str, far_end: Sink, pool: Pool) -> Play:
    """A home, on each database."""
    found = Play(tmp_path / "home", ledger_url, far_end, pool)
    found.prepare()
    return found


def kill_at_each(play: Play, room: str, passes: dict[str, int], hits: Sequence[int]) -> None:
    """Kill at each point of a room, one child after the other, and look at everything at the end."""
    for name in sorted(name for name in passes if name.startswith(f"{room}.")):
        most = next((most for start, most in SELDOM.items() if name.startswith(start)), max(HITS))
        for hit in (hit for hit in hits if hit <= most):
            studies = max(2, math.ceil(STUDIES * hit / passes[name]) + 1)
            code = play.act(studies, armed=f"{name}=kill@{hit}", errands=room in WITH_ERRANDS)
            assert -signal.SIGKILL == code, f"{name}: hit {hit} never came"
    assert 0 == play.act(1)
    play.check().expect(duplicates=play.kills * play.images_of_a_job, case=f"{room}: {play.kills} kills")


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_killed_at_each_point_of(room: str, play: Play, passes: dict[str, int], ledger_url: str) -> None:
    """
    After each kill another process finishes what there was and what came since; 0 lost, each job once, and at most
    the images of one job twice for each kill. On PostgreSQL the first hits; the others under `make soak`.
    """
    kill_at_each(play, room, passes, HITS if ledger_url.startswith("sqlite") else HITS[:1])


MADE = ("spool.create.", "ledger.migrate", "migration.")


@pytest.mark.parametrize("name", sorted(name for name in names() if name.startswith(MADE)))
def test_killed_while_a_home_is_made(name: str, tmp_path: Path) -> None:
    """
    What was half made is made whole by doing it again.
    """

    def make() -> None:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
        ledger.migrate(now=MovedClock().now())
        Spool.create(tmp_path / "spool", clock=MovedClock().now)
        ledger.verify_schema()
        ledger.close()

    pid = os.fork()
    if not pid:
        failpoint.arm(f"{name}=kill")
        make()
        os._exit(0)

    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    make()
    assert Spool.open(tmp_path / "spool", clock=MovedClock().now).name


@pytest.mark.soak
@pytest.mark.parametrize("room", ROOMS)
def test_killed_at_each_hit_of(room: str, play: Play, passes: dict[str, int]) -> None:
    """
    All hits on both databases.
    """
    kill_at_each(play, room, passes, HITS)

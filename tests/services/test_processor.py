"""What becomes of a processing job, and of what it wrote, when the disk, the ledger or a person comes between."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa

from orchestra import Orchestra
from talaria.model.extensions import Executor, Exit, Run, Stop
from talaria.model.job import Event, State
from talaria.services.processor import remove_tree
from talaria.store.schema import instances
from talaria.testing import FailingTarget, synthetic_ct

SECOND = timedelta(seconds=1)
BOOK = """
settings: {{series_quiet: 10s}}
targets: {{out: {{kind: folder, path: {home}/out}}}}
modules: {{copy: {{builtin: pass}}}}
rules: {{all: {{when: "True", action: process, process: [copy], send: [out]}}}}
"""


class Meddling(Executor):
    """An executor that passes its input on, and lets the test do something meanwhile."""

    kind: ClassVar[str] = "process"

    meddle: Callable[[Run], None] = lambda _: None

    def submit(self, run: Run) -> str:
        """Copy."""
        for path in run.input.glob("*.dcm"):
            shutil.copyfile(path, run.output / path.name)
        self.meddle(run)
        return ""

    def follow(self, handle: str, run: Run, *, stop: Stop) -> Exit:
        """All went well."""
        return Exit(code=0, reason="", log="")


def routed(home: Path, meddle: Callable[[Run], None] = lambda _: None) -> Orchestra:
    """An orchestra with one processing job that is due."""
    (home / "out").mkdir()
    found = Orchestra(home)
    found.processor._executors["process"] = Meddling(meddle=meddle)
    found.apply(BOOK.format(home=home))
    found.receive(synthetic_ct(home / "ct", slices=2, side=16).paths)
    found.clock.move(11 * SECOND)
    found.router.step(found.clock.now())
    return found


def in_store(orchestra: Orchestra) -> int:
    return len(list((orchestra.home / "spool" / "store").rglob("*.dcm")))


def in_ledger(orchestra: Orchestra) -> int:
    with orchestra.ledger.reading() as connection:
        return connection.execute(sa.select(sa.func.count(instances.c.id))).scalar_one()


def test_results_are_taken_and_the_folder_goes(tmp_path: Path) -> None:
    """
    When a job is done its results are in the ledger and in the spool, and nothing else is left of it.
    """
    orchestra = routed(tmp_path)
    orchestra.processor.step(orchestra.clock.now())

    assert (State.DONE, 4, 4) == (orchestra.jobs.show(1).state, in_store(orchestra), in_ledger(orchestra))
    assert [] == orchestra.spool.folders()


def test_cancelled_in_the_last_moment_leaves_no_results(tmp_path: Path) -> None:
    """
    Results of a job that a person cancelled while it ran belong to nobody and are removed.
    """
    found: list[Orchestra] = []

    def cancel(_: Run) -> None:
        found[0].jobs.act(1, Event.CANCEL, actor="p", now=found[0].clock.now())

    found.append(orchestra := routed(tmp_path, cancel))
    orchestra.processor.step(orchestra.clock.now())

    assert (State.CANCELLED, 2, 2) == (orchestra.jobs.show(1).state, in_store(orchestra), in_ledger(orchestra))
    assert [] == orchestra.spool.folders()


def test_what_a_dead_worker_left_is_tidied_by_itself(tmp_path: Path) -> None:
    """
    A folder whose job is not active goes when the processor has nothing to do, and then each minute.
    """
    orchestra = routed(tmp_path)
    orchestra.processor.step(orchestra.clock.now())
    for _ in range(2):
        (orchestra.spool.work / "job-1-1").mkdir()
        orchestra.clock.move(61 * SECOND)
        orchestra.processor.step(orchestra.clock.now())

        assert [] == orchestra.spool.folders()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_full_disk_defers(tmp_path: Path, number: int) -> None:
    """
    A disk that is full or broken while a job is worked on defers it; it is no bug.
    """

    def fill(_: Run) -> None:
        raise OSError(number, "as the disk says")

    orchestra = routed(tmp_path, fill)
    orchestra.processor.step(orchestra.clock.now())

    assert State.DEFERRED == orchestra.jobs.show(1).state
    assert orchestra.jobs.show(1).reason.startswith("the spool cannot run a job: ")


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_spool_away_defers(tmp_path: Path, moment: str) -> None:
    """
    While the spool's disk is not mounted a job waits, and it is done when the disk is back.
    """

    def unmount(_: Run) -> None:
        shutil.move(tmp_path / "spool", tmp_path / "elsewhere")

    orchestra = routed(tmp_path, unmount if moment == "meanwhile" else lambda _: None)
    if moment == "before":
        shutil.move(tmp_path / "spool", tmp_path / "elsewhere")
    orchestra.processor.step(orchestra.clock.now())
    away = orchestra.jobs.show(1)
    shutil.move(tmp_path / "elsewhere", tmp_path / "spool")
    orchestra.processor._executors["process"] = Meddling()
    orchestra.wait(timedelta(minutes=1))

    assert (State.DEFERRED, State.DONE) == (away.state, orchestra.jobs.show(1).state)
    assert f"spool {tmp_path}/spool: its marker file is gone; is the disk mounted?" == away.reason


def test_lost_input_fails(tmp_path: Path) -> None:
    """
    An input that is gone from a spool that is there will not come back by itself.
    """
    orchestra = routed(tmp_path)
    for path in (tmp_path / "spool").rglob("*.dcm"):
        path.unlink()
    orchestra.processor.step(orchestra.clock.now())

    assert State.FAILED == orchestra.jobs.show(1).state
    assert orchestra.jobs.show(1).reason.startswith("an input is gone from the spool: ")


def test_restart_after_cleaning_fails(tmp_path: Path) -> None:
    """
    A job that is started again when its files are gone says what to do.
    """
    orchestra = routed(tmp_path)
    orchestra.step()
    orchestra.clock.move(timedelta(days=40))
    orchestra.cleaner.step(orchestra.clock.now())
    orchestra.jobs.act(1, Event.RESTART, actor="p", now=orchestra.clock.now())
    orchestra.step()
    job = orchestra.jobs.show(1)

    assert (State.FAILED, "its files were removed by retention; send the study again") == (job.state, job.reason)


def test_revision_whose_plug_is_gone_defers(tmp_path: Path) -> None:
    """
    A job of a rulebook that this installation cannot read any more waits until it can.
    """
    (tmp_path / "out").mkdir()
    first = Orchestra(tmp_path, targets={"failing": FailingTarget})
    text = BOOK.format(home=tmp_path)
    first.apply(text.replace("targets: {", f"targets: {{odd: {{kind: failing, journal: {tmp_path}/journal}}, "))
    first.receive(synthetic_ct(tmp_path / "ct", slices=2, side=16).paths)
    first.clock.move(11 * SECOND)
    first.router.step(first.clock.now())
    first.apply(text)
    second = Orchestra(tmp_path)
    second.clock.move(60 * SECOND)
    second.processor.step(second.clock.now())
    job = second.jobs.show(1)

    assert State.DEFERRED == job.state
    assert job.reason.startswith("revision 1 of the rulebook, under which it was made, cannot be read here: ")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from talaria.services.processor import remove_tree

if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
root = Path(sys.argv[1]) / "job"
(root / "in" / "deep").mkdir(parents=True)
(root / "in" / "deep" / "file").write_text("x")
(root / "in" / "deep").chmod(0)
(root / "in").chmod(0o500)
remove_tree(root)
print(root.exists())
"""


def test_folder_without_rights_is_removed(tmp_path: Path) -> None:
    """
    A module that took our rights to its folders away does not keep them.
    """
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, tmp_path], check=True, capture_output=True, text=True
    )  # fmt: skip

    assert "False\n" == done.stdout


def test_folder_that_cannot_be_removed_stops_nothing(tmp_path: Path) -> None:
    """
    Where one folder cannot be removed the others are, and nothing is raised.
    """
    orchestra = routed(tmp_path)
    orchestra.processor.step(orchestra.clock.now())
    (orchestra.spool.work / "job-1-1").write_text("no folder, and rmtree refuses it")
    (orchestra.spool.work / "job-1-2").mkdir()

    assert 2 == orchestra.processor.tidy()
    assert ["job-1-1"] == orchestra.spool.folders()
    remove_tree(orchestra.spool.work / "never was")

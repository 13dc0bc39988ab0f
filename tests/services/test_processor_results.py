"""What modules write into `result.json`, and under which revision of the rulebook their jobs run."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestra import Orchestra
from talaria import __version__
from talaria.model.extensions import Executor, Exit, Run, Stop
from talaria.model.job import State
from talaria.store.results import ResultLine, Results
from talaria.testing import synthetic_ct

SECOND = timedelta(seconds=1)
BOOK = """
settings: {{series_quiet: 10s}}
targets: {{out: {{kind: folder, path: {home}/out}}}}
modules: {{first: {{builtin: pass}}, second: {{builtin: pass, timeout: {minutes}m}}}}
rules: {{all: {{when: "True", action: process, process: [first, second], send: [out]}}}}
"""


class Writing(Executor):
    """An executor that passes its input on, and writes a result as the test says."""

    kind: ClassVar[str] = "process"

    write: Callable[[Run], None]

    code: int = 0

    def submit(self, run: Run) -> str:
        """Copy, and write."""
        for path in run.input.glob("*.dcm"):
            shutil.copyfile(path, run.output / path.name)
        self.write(run)
        return ""

    def follow(self, handle: str, run: Run, *, stop: Stop) -> Exit:
        """The last step ends as the test says."""
        return Exit(code=self.code if run.step == 2 else 0, reason="", log="")


def processed(home: Path, write: Callable[[Run], None], *, code: int = 0) -> Orchestra:
    """An orchestra that has run a chain of two steps."""
    (home / "out").mkdir()
    found = Orchestra(home)
    found.processor._executors["process"] = Writing(write=write, code=code)
    found.apply(BOOK.format(home=home, minutes=1))
    found.receive(synthetic_ct(home / "ct", slices=2, side=16).paths)
    found.clock.move(11 * SECOND)
    found.router.step(found.clock.now())
    found.processor.step(found.clock.now())
    return found


def kept(orchestra: Orchestra) -> list[ResultLine]:
    return list(Results(orchestra.ledger).page().items)


def troubles(orchestra: Orchestra) -> list[tuple[str, Any]]:
    events = orchestra.listing.events(limit=499)
    return [(event.kind, event.detail["reason"]) for event in events if event.kind.startswith("result.")]


def test_each_step_is_recorded_whole(tmp_path: Path) -> None:
    """
    What every step of a chain wrote is kept whole, with its module and version; the next step does not see it.
    """
    seen = []

    def write(run: Run) -> None:
        seen.append((run.input / "result.json").exists())
        (run.output / "result.json").write_text(f'{{"step": {run.step}, "deep": [[null, "ü"]]}}')

    orchestra = processed(tmp_path, write)

    assert State.DONE == orchestra.jobs.show(1).state
    assert [False, False] == seen
    assert [
        (1, "first", __version__, {"step": 1, "deep": [[None, "ü"]]}),
        (2, "second", __version__, {"step": 2, "deep": [[None, "ü"]]}),
    ] == [(line.step, line.module, line.version, line.value) for line in kept(orchestra)]
    assert {1} == {line.job_id for line in kept(orchestra)}
    assert [] == troubles(orchestra)


def one(run: Run) -> None:
    (run.output / "result.json").write_text("1")


def test_failed_attempt_has_no_results(tmp_path: Path) -> None:
    """
    Where a later step fails, what the earlier ones found is not shown.
    """
    orchestra = processed(tmp_path, one, code=1)

    assert State.FAILED == orchestra.jobs.show(1).state
    assert [] == kept(orchestra)


def no_json(path: Path) -> None:
    path.write_text("<html>")


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_json, "is not JSON: Expecting value, line 1, column 1"),
        (a_link, "is no regular file"),
        (a_pipe, "is no regular file"),
        (a_folder, "is no regular file"),
        (too_large, "is larger than 16 MB"),
    ],
)
def test_unreadable_result_stops_nothing(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    """
    A result that is none is told by an event, and its job goes on.
    """
    orchestra = processed(tmp_path, lambda run: make(run.output / "result.json") if run.step == 2 else None)

    assert State.DONE == orchestra.jobs.show(1).state
    assert [] == kept(orchestra)
    assert [("result.unreadable", reason)] == troubles(orchestra)


def test_mended_result_is_kept_and_told(tmp_path: Path) -> None:
    """
    NaN, which JSON has not, becomes null; the rest is kept, and an event says what was changed.
    """

    def write(run: Run) -> None:
        if run.step == 2:
            (run.output / "result.json").write_text('{"ratio": NaN, "volume": 3}')

    orchestra = processed(tmp_path, write)

    assert [{"ratio": None, "volume": 3}] == [line.value for line in kept(orchestra)]
    assert [("result.odd", "NaN and infinities became null")] == troubles(orchestra)


def test_job_stays_on_the_revision_it_began_with(tmp_path: Path) -> None:
    """
    A rulebook saved while a chain runs, and one saved before it is taken up, changes nothing for the job.
    """
    timeouts: list[timedelta] = []
    found: list[Orchestra] = []

    def write(run: Run) -> None:
        timeouts.append(run.limits.timeout)
        if run.step == 1:
            found[0].apply(BOOK.format(home=tmp_path, minutes=3))

    (tmp_path / "out").mkdir()
    found.append(orchestra := Orchestra(tmp_path))
    orchestra.processor._executors["process"] = Writing(write=write)
    first = orchestra.apply(BOOK.format(home=tmp_path, minutes=1))
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=2, side=16).paths)
    orchestra.clock.move(11 * SECOND)
    orchestra.router.step(orchestra.clock.now())
    orchestra.apply(BOOK.format(home=tmp_path, minutes=2))
    orchestra.processor.step(orchestra.clock.now())

    assert (first, State.DONE) == (orchestra.jobs.show(1).revision, orchestra.jobs.show(1).state)
    assert 3 == orchestra.revisions.latest()
    assert timedelta(minutes=1) == timeouts[1]

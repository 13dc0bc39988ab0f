"""Fail points: silent unless armed, exact to the hit, once for all processes of a file."""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from talaria import failpoint
from talaria.failpoint import Faults, InjectedFault


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Whatever a test arms is gone after it."""
    yield
    failpoint.arm("")
    failpoint.stand_for("")


def code_of(work: Callable[[], object]) -> int:
    """The exit code of a child that does it; negative for a signal."""
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_nothing_happens_unless_it_is_armed() -> None:
    """
    In life a fail point does nothing.
    """
    failpoint.failpoint("a.b.c")
    failpoint.arm("x.y.z=raise")
    failpoint.failpoint("a.b.c")


def test_environment_arms_a_test_build_only() -> None:
    """
    Both variables are needed: a server on which one was left alone is not harmed.
    """
    failpoint.arm_from({"TALARIA_FAILPOINTS": "a.b.c=raise"})
    failpoint.failpoint("a.b.c")
    failpoint.arm_from({"TALARIA_FAILPOINTS": "a.b.c=raise", "TALARIA_TEST_BUILD": "1"})

    with pytest.raises(InjectedFault, match=r"a\.b\.c"):
        failpoint.failpoint("a.b.c")


def test_acts_at_its_hit_and_no_other() -> None:
    """
    The third time means the third time.
    """
    faults = Faults("a.b.c=enospc@3")
    faults.passed("a.b.c")
    faults.passed("other")
    faults.passed("a.b.c")

    with pytest.raises(OSError) as caught:
        faults.passed("a.b.c")
    assert errno.ENOSPC == caught.value.errno
    faults.passed("a.b.c")


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", 70)])
def test_ends_the_process(action: str, code: int) -> None:
    """
    As a power cut does, or as a program that gives up.
    """
    assert code == code_of(lambda: Faults(f"a.b.c={action}").passed("a.b.c"))


def test_stops_the_process_until_it_is_told_to_go_on() -> None:
    """
    SIGSTOP: it hangs, and lives.
    """
    pid = os.fork()
    if not pid:
        Faults("a.b.c=stop").passed("a.b.c")
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    os.kill(pid, signal.SIGCONT)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sleeps() -> None:
    """
    It waits as long as it is told.
    """
    began = time.monotonic()
    Faults("a.b.c=sleep:0.05").passed("a.b.c")

    assert time.monotonic() - began >= 0.05


def test_place_of_one_service() -> None:
    """
    What is armed for one service does nothing in the others.
    """
    failpoint.arm("router:a.b.c=raise")
    failpoint.stand_for("receiver")
    failpoint.failpoint("a.b.c")
    failpoint.stand_for("router")

    with pytest.raises(InjectedFault):
        failpoint.failpoint("a.b.c")


def test_entry_of_a_file_acts_in_one_process_only(tmp_path: Path) -> None:
    """
    What is started again after a kill lives; the other entries of the file are still to come.
    """
    armed = tmp_path / "armed"
    armed.write_text("a.b.c=kill,d.e.f=exit")
    codes = [code_of(lambda: Faults(str(armed)).passed("a.b.c")) for _ in range(2)]
    codes.append(code_of(lambda: Faults(str(armed)).passed("d.e.f")))

    assert [-signal.SIGKILL, 0, 70] == codes
    assert {"armed.a.b.c.fired", "armed.d.e.f.fired"} == {path.name for path in tmp_path.glob("*.fired")}


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """
    Another file is another case: counts begin anew, and a file that is gone arms nothing.
    """
    armed = tmp_path / "armed"
    faults = Faults(str(armed))
    faults.passed("a.b.c")
    armed.write_text("a.b.c=raise@2")
    faults.passed("a.b.c")
    fresh = tmp_path / "fresh"
    fresh.write_text("a.b.c=raise@2")
    fresh.rename(armed)
    faults.passed("a.b.c")

    with pytest.raises(InjectedFault):
        faults.passed("a.b.c")
    armed.unlink()
    faults.passed("a.b.c")


@pytest.mark.parametrize("text", ["a.b.c=kil", "a.b.c", "a.b.c=kill@often", "a.b.c=enothing"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    """
    A test that arms nothing proves nothing.
    """
    with pytest.raises(ValueError):
        Faults(text)

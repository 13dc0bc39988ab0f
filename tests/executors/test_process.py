"""The process executor: a run ends, within its limits, and nothing of it is left."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from talaria.executors.process import Process
from talaria.model.errors import Permanent, Transient
from talaria.model.extensions import Exit, Limits, Run, Stopped
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.slow


class Scripted(Process):
    """Runs a script in place of a built-in module."""

    script: str

    def argv(self, run: Run) -> list[str]:
        return [sys.executable, "-I", "-u", "-c", self.script]


LIMITS = Limits(
    timeout=timedelta(seconds=20), memory_bytes=1 << 30, output_bytes=1 << 20, output_files=50, log_bytes=2000
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A step with an empty input."""
    (tmp_path / "in").mkdir()
    return Run(
        job_id=1,
        attempt=1,
        step=0,
        module="mine",
        builtin="pass",
        image=None,
        folder=tmp_path,
        environment={"GIVEN": "by the rulebook"},
        limits=LIMITS,
    )


def never() -> bool:
    """A stop that is not asked for."""
    return False


def ended(run: Run, script: str, *, stop: Callable[[], bool] = never, **limits: object) -> Exit:
    """How a script ends as a run."""
    run = replace(run, limits=replace(LIMITS, **limits))  # type: ignore[arg-type] # names are checked by replace
    executor = Scripted(script=script, grace="1s")
    result = executor.follow(executor.submit(run), run, stop=stop)
    assert result is not None
    return result


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """After each test no process stands in the run's folder, and none waits to be reaped."""
    yield
    assert [] == [pid for pid in os.listdir("/proc") if pid.isdigit() and stands_in(pid, tmp_path)]
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert [] == [pid for pid in children if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]]


def stands_in(pid: str, folder: Path) -> bool:
    """Whether a process has *folder* as its working directory."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")) == folder
    except OSError:
        return False


def test_built_in_module_runs(run: Run) -> None:
    """
    A built-in module reads `in`, writes `out`, and its log is kept.
    """
    study = synthetic_ct(run.input, slices=2, side=32)
    executor = Process()

    result = executor.follow(executor.submit(run), run, stop=never)

    assert Exit(code=0, reason="", log="2 files copied\n") == result
    assert result.ok
    assert {path.name for path in study.paths} == {path.name for path in run.output.iterdir()}
    assert not (run.folder / "tmp").exists()


def test_unknown_module_fails_with_its_reason(run: Run) -> None:
    """
    The last line that the child printed is the reason.
    """
    executor = Process()
    run = replace(run, builtin="nothing")

    result = executor.follow(executor.submit(run), run, stop=never)

    assert Exit(
        code=1, reason="exit code 1: there is no built-in module 'nothing'", log=result.log if result else ""
    ) == (result)


def test_image_is_not_for_this_executor(run: Run) -> None:
    """
    What is no built-in module cannot be started here.
    """
    with pytest.raises(Permanent) as caught:
        Process().submit(replace(run, builtin=None, image="lung:1"))

    assert "module 'mine': executor 'process' runs built-in modules only; name another executor" == str(caught.value)


def test_run_that_cannot_start_is_tried_again(run: Run) -> None:
    """
    A folder that is away is worth another try.
    """
    with pytest.raises(Transient, match="module 'mine': could not be started: no such file or directory"):
        Process().submit(replace(run, folder=run.folder / "away"))


SELF = """
import os, resource, sys, json
print(json.dumps({
    "environ": sorted(os.environ), "given": os.environ["GIVEN"], "cwd": os.getcwd(), "stdin": sys.stdin.read(),
    "session": os.getsid(0) == os.getpid(), "umask": os.umask(0), "nice": os.nice(0),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    "as": resource.getrlimit(resource.RLIMIT_AS)[1], "fds": len(os.listdir("/proc/self/fd")),
}))
"""


def test_child_sees_little(run: Run) -> None:
    """
    The child has a small environment, no input, no descriptor of ours, a session of its own, and its limits.
    """
    secret_fd = os.open("/etc/hostname", os.O_RDONLY)
    seen = json.loads(ended(run, SELF, log_bytes=10_000).log)
    os.close(secret_fd)

    ours = {"PATH", "LANG", "HOME", "TMPDIR", "GIVEN"}
    names = {"TALARIA_IN_DIR", "TALARIA_OUT_DIR", "TALARIA_TASK", "TALARIA_PARENT", "TALARIA_RUN"}
    assert ours | names | {"MERCURE_IN_DIR", "MERCURE_OUT_DIR"} == set(seen["environ"]) - {"LC_CTYPE"}
    assert ("by the rulebook", str(run.folder), "") == (seen["given"], seen["cwd"], seen["stdin"])
    assert (True, 0o027, 10) == (seen["session"], seen["umask"], seen["nice"])
    assert ([0, 0], 1024, 1 << 30, 4) == (seen["core"], seen["nofile"], seen["as"], seen["fds"])


def test_exit_code_is_told_with_the_last_line(run: Run) -> None:
    """
    A failure has the code and what the module said last.
    """
    result = ended(run, "print('first'); print('no lung found'); print(); raise SystemExit(3)")

    assert (3, "exit code 3: no lung found", False) == (result.code, result.reason, result.ok)
    assert "exit code 4: it printed nothing" == ended(run, "raise SystemExit(4)").reason


def test_death_by_signal_is_told(run: Run) -> None:
    """
    A crash is told by the name of its signal, as a shell counts its code.
    """
    result = ended(run, "import os; os.abort()")

    assert (134, "killed by SIGABRT") == (result.code, result.reason)
    assert (
        "killed by SIGKILL, by the system if memory ran out (its limit is 1g)"
        == ended(run, "import os; os.kill(os.getpid(), 9)").reason
    )


def test_memory_is_limited(run: Run) -> None:
    """
    A module that takes too much memory fails, and the reason says so.
    """
    result = ended(run, "x = bytearray(2 << 30)", log_bytes=5000)

    assert "killed: out of memory at 1g" == result.reason


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready')\nwhile True: time.sleep(60)"
)


@pytest.mark.parametrize("script", ["import time; time.sleep(600)", STUBBORN])
def test_time_is_limited(run: Run, script: str) -> None:
    """
    A module that hangs is ended, also one that does not listen to SIGTERM.
    """
    begun = time.monotonic()

    result = ended(run, script, timeout=timedelta(seconds=0.5))

    assert "killed: took longer than 0.5s" == result.reason
    assert not result.ok
    assert time.monotonic() - begun < 10


def test_log_is_drained_and_cut(run: Run) -> None:
    """
    A module that floods its log goes on, and only the end is kept.
    """
    result = ended(run, "for n in range(200_000): print('line', n)", log_bytes=1000)

    assert result.ok
    assert result.log.startswith("[2287890 bytes before this were cut]\n")
    assert result.log.endswith("line 199999\n")
    assert 1000 + 37 == len(result.log)


def test_log_cannot_move_a_terminal(run: Run) -> None:
    """
    Escapes, other controls and bytes that are no text are kept as text.
    """
    result = ended(run, r"import os; os.write(1, b'a\x1b[2Jb\x00\x07\xff\tc\r\nd\n'); raise SystemExit(1)")

    assert "a\\x1b[2Jb\\x00\\x07\ufffd\tc\nd\n" == result.log


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("[open(f'out/{n}', 'w') for n in range(51)]", "killed: wrote more than 50 files"),
        ("import os\nfor n in range(51): os.mkdir(f'out/{n}')", "killed: wrote more than 50 files"),
        ("for n in range(3): open(f'out/{n}', 'wb').write(bytes(1 << 19))", "killed: wrote more than 1m"),
        ("for n in range(3): open(f'tmp/{n}', 'wb').write(bytes(1 << 19))", "killed: wrote more than 1m"),
        (
            "import os\nfor n in range(3): os.truncate(os.open(f'out/{n}', os.O_CREAT | os.O_RDWR), 1 << 19)",
            "killed: wrote more than 1m",
        ),
        (
            "open('out/big', 'wb', buffering=0).write(bytes(2 << 20)); open('out/more', 'w').write('x')",
            "killed: wrote more than 1m",
        ),
    ],
)
@pytest.mark.parametrize("hang", ["", "\nimport time; time.sleep(600)"])
def test_output_is_limited(run: Run, script: str, reason: str, hang: str) -> None:
    """
    What a module writes is counted while it runs and when it has ended: files, folders, sparse files, scratch.
    """
    result = ended(run, f"{script}{hang}")

    assert reason == result.reason
    assert not result.ok


def test_one_file_cannot_grow_past_the_limit(run: Run) -> None:
    """
    The system itself stops a file that grows too large, however fast.
    """
    ended(run, "f = open('out/big', 'wb', buffering=0)\nwhile True: f.write(bytes(1 << 16))")

    assert 1 << 20 == (run.output / "big").stat().st_size


def test_output_through_a_link_is_not_counted(run: Run) -> None:
    """
    A link to a large folder is a file like another.
    """
    result = ended(run, "import os; os.symlink('/usr', 'out/usr'); os.symlink('.', 'out/loop')")

    assert result.ok


def test_endless_nesting_is_ended(run: Run) -> None:
    """
    Folders nested beyond what has a path are refused.
    """
    script = "import os\nos.chdir('out')\nfor n in range(100): os.mkdir('d' * 200); os.chdir('d' * 200)"

    result = ended(run, script, output_files=1000)

    assert "killed: its output cannot be read: file name too long" == result.reason
    subprocess.run(["rm", "-rf", run.output], check=True)


FORKS = """
import os, time
for n in range(20):
    if os.fork() == 0:
        time.sleep(600)
print('left them')
"""

DAEMON = """
import os, time
for n in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        os._exit(0)
os.close(1), os.close(2)
"""


@pytest.mark.parametrize("script", [FORKS, DAEMON, DAEMON + "\ntime.sleep(600)"])
def test_no_process_outlives_its_run(run: Run, script: str) -> None:
    """
    Children that a module left behind are killed with it, daemons too (the fixture looks for them).
    """
    begun = time.monotonic()

    ended(run, script, timeout=timedelta(seconds=1))

    assert time.monotonic() - begun < 10


def test_stop_ends_the_run(run: Run) -> None:
    """
    A cancelled job, or a service that stops, ends the run.
    """
    with pytest.raises(Stopped):
        ended(run, "import time; time.sleep(600)", stop=lambda: True)


def test_stop_is_asked_a_few_times_a_second(run: Run) -> None:
    """
    A module that floods its log does not make us ask without end.
    """
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    ended(run, "while True: print('x' * 1000)", timeout=timedelta(seconds=1.2), stop=count)

    assert 1 <= asked <= 6


def test_error_in_the_middle_leaves_nothing(run: Run) -> None:
    """
    Whatever breaks while a run is followed, the run is ended.
    """

    def broken() -> bool:
        raise KeyError

    with pytest.raises(KeyError):
        ended(run, "import time; time.sleep(600)", stop=broken)


def test_run_of_another_executor_is_not_known(run: Run) -> None:
    """
    A handle that another process, or a life before this, left is answered with None; what is left of it is killed.
    """
    starter = Scripted(script="import time; time.sleep(600)")
    handle = starter.submit(run)
    pid = int(handle.partition(":")[0])
    fd = os.pidfd_open(pid)

    assert Process().follow(handle, run, stop=never) is None

    assert select.select([fd], [], [], 10)[0]
    os.close(fd)
    starter.follow(handle, run, stop=never)


@pytest.mark.parametrize("handle", ["", "1", "1:2", "abc:def:ghi", "999999999:1:x"])
def test_unknown_handles_are_none(run: Run, handle: str) -> None:
    """
    A handle that means nothing here is answered with None.
    """
    assert Process().follow(handle, run, stop=never) is None


def test_reused_process_number_is_spared(run: Run) -> None:
    """
    A process that only has the number of an old run is not touched.
    """
    with subprocess.Popen(["sleep", "600"]) as stranger:
        start = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19]

        assert Process().follow(f"{stranger.pid}:{start}:token", run, stop=never) is None
        assert Process().follow(f"{stranger.pid}:{int(start) - 1}:token", run, stop=never) is None

        assert stranger.poll() is None
        stranger.kill()


def test_runs_do_not_leak_descriptors(run: Run) -> None:
    """
    Many runs leave as many open files as there were before.
    """
    ended(run, "pass")
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        ended(run, "print('x')")

    assert before == len(os.listdir("/proc/self/fd"))

"""The child that runs a module: exit code and reason, as its executor reads them."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from talaria.model.errors import ConfigError
from talaria.modules.__main__ import find, main, settings_of
from talaria.modules.pass_ import Pass
from talaria.modules.set_tags import SetTags
from talaria.testing import synthetic_ct


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two folders, with one small CT slice to read."""
    synthetic_ct(tmp_path / "in", slices=1, side=32)
    (tmp_path / "out").mkdir()
    return {"TALARIA_IN_DIR": str(tmp_path / "in"), "TALARIA_OUT_DIR": str(tmp_path / "out")}


def give(environment: dict[str, str], task: object) -> None:
    """Write task.json."""
    Path(environment["TALARIA_IN_DIR"], "task.json").write_text(json.dumps(task))


def child(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as a process."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "talaria.modules", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_module_runs_on_its_folders(environment: dict[str, str]) -> None:
    """
    A run that goes well ends with 0, a log and its files.
    """
    give(environment, {"process": {"settings": {"tags": {"SeriesDescription": "AI"}}}})

    done = child(environment, "set_tags")

    assert (0, "1 instances changed, 0 other files copied\n", "") == (done.returncode, done.stdout, done.stderr)
    assert 1 == len(list(Path(environment["TALARIA_OUT_DIR"]).iterdir()))


def test_mercure_names_will_do(environment: dict[str, str]) -> None:
    """
    The folders may be named as mercure names them.
    """
    renamed = {name.replace("TALARIA", "MERCURE"): value for name, value in environment.items()}

    assert 0 == main(["pass"], renamed)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"process": {"settings": {}}}, "set_tags: settings: tags: Field required\n"),
        (
            {"process": [{"settings": {"tags": {}, "keep": True}}]},
            "set_tags: settings: keep: Extra inputs are not permitted\n",
        ),
        ({"process": {"settings": 5}}, "process.settings in task.json is no object\n"),
        ([], "task.json is no JSON object of at most 16 MiB\n"),
        (
            {"process": {"settings": {"tags": {"Rows": 1}}}},
            "set_tags: settings: tags: Value error, Rows cannot be set: the pixel data would read differently\n",
        ),
    ],
)
def test_wrong_settings_are_told(
    environment: dict[str, str], task: object, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Settings that cannot be used end the run with 1 and the reason, no traceback.
    """
    give(environment, task)

    code = main(["set_tags"], environment)

    assert (1, reason) == (code, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "without", "reason"),
    [
        ([], "", "usage: python -m talaria.modules NAME\n"),
        (["../evil"], "", "there is no built-in module '../evil'\n"),
        (["files"], "", "there is no built-in module 'files'\n"),
        (["__main__"], "", "there is no built-in module '__main__'\n"),
        (["pass"], "TALARIA_OUT_DIR", "TALARIA_OUT_DIR names no folder\n"),
    ],
)
def test_wrong_calls_are_told(
    environment: dict[str, str],
    arguments: list[str],
    without: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    A call that makes no sense ends with 1 and the reason.
    """
    environment.pop(without, None)

    assert (1, reason) == (main(arguments, environment), capsys.readouterr().err)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b" " * ((16 << 20) + 1)])
def test_hostile_task_is_refused(environment: dict[str, str], text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A task that is no JSON, is nested without end or is too long is refused.
    """
    Path(environment["TALARIA_IN_DIR"], "task.json").write_bytes(text)

    code = main(["pass"], environment)

    assert (1, "task.json is no JSON object of at most 16 MiB\n") == (code, capsys.readouterr().err)


def test_modules_are_found_by_kind() -> None:
    """
    A module named like a keyword of Python stands in a file with a `_`.
    """
    assert (Pass, SetTags) == (find("pass"), find("set_tags"))
    with pytest.raises(ConfigError):
        find("set_tags_")


def test_settings_of_a_chain_are_those_of_its_first_step() -> None:
    """
    mercure writes one step as an object and several as a list.
    """
    assert {"a": 1} == settings_of({"process": [{"settings": {"a": 1}}, {"settings": {"a": 2}}]})
    assert {} == settings_of({})


ORPHANED = """
import os, subprocess, sys
from pathlib import Path
fifo, argv = sys.argv[1], [sys.executable, "-I", "-m", "talaria.modules", "pass"]
child = subprocess.Popen(argv, env={**os.environ, "TALARIA_PARENT": str(os.getpid()), "TALARIA_TASK": fifo})
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_child_dies_with_its_parent(environment: dict[str, str], tmp_path: Path) -> None:
    """
    When the service is killed, its modules do not go on alone.
    """
    fifo = tmp_path / "task"
    os.mkfifo(fifo)  # the child waits for its task here
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANED, fifo],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert parent.stdout is not None
    child_fd = os.pidfd_open(int(parent.stdout.readline()))
    writer = os.open(fifo, os.O_WRONLY)  # returns once the child has come so far

    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    assert pidfd_ended(child_fd)
    os.close(writer)


def pidfd_ended(fd: int) -> bool:
    """Whether the process ends within ten seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(10_000))

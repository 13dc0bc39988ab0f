"""A log whose disk is full, or that nobody reads: work goes on, and later the log says what it lost."""

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest
from real import Real
from small_disk import small_disk
from stage import Pool

from serving import Serving
from sink import Sink

pytestmark = pytest.mark.server


def talkative(folder: Path, far_end: Sink, pool: Pool) -> Real:
    """A home that is set up, and says everything."""
    found = Real(Serving(folder, TALARIA_LOG_LEVEL="debug"), far_end, pool)
    found.prepare()
    return found


def told(lines: list[str]) -> list[dict[str, object]]:
    """Events of a log; two processes may write into one another's lines where a pipe is nearly full."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_disk_of_the_log_is_full(tmp_path: Path, far_end: Sink, pool: Pool) -> None:
    """
    A study goes all the way while the log takes nothing; then a line says how many were lost (case 76).
    """
    real = talkative(tmp_path, far_end, pool)
    with small_disk(tmp_path / "disk", size="1m") as disk:
        real.serving.log = disk.folder / "talaria.log"
        try:
            real.serving.start()
            with disk.filled():
                real.send(studies=3)
                real.settle()
            real.send()
            real.settle()
            assert 0 == real.serving.stop()
        finally:
            real.serving.abandon()
        lines = told(real.serving.log.read_text(errors="replace").splitlines())
    assert any(line.get("lost_lines") for line in lines)
    real.check().expect(duplicates=0, case="the log's disk is full")


def test_log_that_nobody_reads(tmp_path: Path, far_end: Sink, pool: Pool) -> None:
    """
    Studies go all the way while standard error is a pipe that is full; read again, it has what was told meanwhile
    (case 76).
    """
    real = talkative(tmp_path, far_end, pool)
    real.serving.log = tmp_path / "pipe"
    os.mkfifo(real.serving.log)
    reader = os.open(real.serving.log, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    lines: list[str] = []

    def read() -> None:
        os.set_blocking(reader, True)
        with open(reader, errors="replace") as pipe:
            lines.extend(pipe)

    reading = threading.Thread(target=read, daemon=True)
    try:
        real.serving.start()
        for _ in range(3):
            real.send()
            real.settle()
        reading.start()
        assert 0 == real.serving.stop()
        reading.join(30)
    finally:
        real.serving.abandon()
    ended = [line for line in told(lines) if line["event"] == "association ended"]
    assert len(ended) >= 3, "what waited was not told"
    assert {"stopped"} <= {str(line["event"]) for line in told(lines)}
    real.check().expect(duplicates=0, case="a log that nobody reads")

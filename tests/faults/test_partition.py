"""The database and a target cannot be reached for a while, and nobody is told: all goes on when they can."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from network import Way, way
from real import RULEBOOK, Real
from stage import Pool

from clusters import cluster
from serving import Serving, until
from sink import Sink

pytestmark = pytest.mark.server

PARTED_SECONDS = 8.0
#: No answer waits for the database.
ANSWER_SECONDS = 2.0


@dataclass
class Parted:
    """A served home, and its ways to the database and to a target."""

    real: Real
    ways: tuple[Way, Way]


@pytest.fixture
def parted(tmp_path: Path, far_end: Sink, pool: Pool) -> Iterator[Parted]:
    """Served, and reached by nothing else."""
    with ExitStack() as stack:
        server = stack.enter_context(cluster())
        to_server, to_sink = stack.enter_context(way(server.port)), stack.enter_context(way(far_end.port))
        serving = Serving(tmp_path, url=f"postgresql://postgres@127.0.0.1:{to_server.port}/postgres")
        real = Real(serving, far_end, pool)
        real.prepare()
        serving.apply(RULEBOOK.format(folder=tmp_path, port=to_sink.port))
        stack.callback(serving.abandon)
        serving.start()
        yield Parted(real, (to_server, to_sink))


def test_partition_that_heals(parted: Parted) -> None:
    """
    While both are away every image is taken, and answered as soon as ever; healed, the backlog drains: nothing is
    lost, and what was on its way is not sent again for each second of it (case 79).
    """
    real = parted.real
    real.send()
    for one in parted.ways:
        one.part()
    began, studies = time.monotonic(), 0
    scu = real.scu()
    while time.monotonic() - began < PARTED_SECONDS:
        assert [] == real.send()
        assert scu.echo() <= ANSWER_SECONDS
        studies += 1
        time.sleep(0.5)  # a module takes as long for each
    before = len(real.far_end.copies())
    for one in parted.ways:
        one.heal()
    took = real.settle(seconds=90)
    until(lambda: len(real.far_end.copies()) >= 2 * (studies + 1), seconds=1, what="all copies")
    assert before <= 2, "the target was reached"
    assert 0 == real.serving.stop()
    real.check().expect(
        duplicates=4, case=f"parted for {PARTED_SECONDS:.0f} s, {studies} studies, {took:.1f} s to heal"
    )

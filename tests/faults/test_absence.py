"""PostgreSQL is stopped while images are delivered, and the dispatcher killed before it is back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from checker import Checker
from real import Real
from stage import Pool

from clusters import Cluster, cluster
from serving import Serving, until
from sink import Sink

pytestmark = pytest.mark.server

IMAGES = 6
ONE_TARGET = """\
settings: {{series_quiet: 1s}}
targets:
  results: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: SINK, calling_ae: RESULTS,
    retry: {{first: 1s, most: 2s}}}}
rules:
  all: {{when: "True", send: [results]}}
"""


@pytest.fixture
def database() -> Iterator[Cluster]:
    """A server that may be stopped."""
    with cluster() as made:
        yield made
        if not (made.folder / "cluster" / "postmaster.pid").exists():
            made.start()


@pytest.fixture
def real(tmp_path: Path, database: Cluster, far_end: Sink) -> Iterator[Real]:
    """A home on it, served by one command for each service."""
    serving = Serving(tmp_path, url=f"{database.address}/postgres")
    found = Real(serving, far_end, Pool(tmp_path / "pool", slices=IMAGES))
    found.prepare()
    serving.apply(ONE_TARGET.format(port=far_end.port))
    serving.start()
    yield found
    serving.abandon()


def ends(home: Path) -> int:
    """How many ends of jobs stand in journals."""
    return sum(path.read_text().count('"kind":"end"') for path in (home / "journal").glob("*.journal"))


@pytest.mark.parametrize("killed", [True, False], ids=["dispatcher killed", "all live"])
def test_delivery_outlives_the_ledger(real: Real, database: Cluster, killed: bool) -> None:
    """
    What was sent while the server was away is known when it is back: nothing is lost, and nothing sent again.
    """
    home = real.folder / "home"
    (dispatcher,) = until(lambda: real.serving.pids("dispatcher"), seconds=30, what="the dispatcher")
    real.arm("dispatcher:dispatcher.outcome.noted=sleep:4@2")
    real.send()
    until(lambda: real.has_fired("dispatcher:dispatcher.outcome.noted"), seconds=30, what="the middle of a delivery")
    database.control("-m", "immediate", "stop")
    real.send()  # what comes meanwhile is taken, too
    until(lambda: ends(home) == 1, seconds=30, what="the end of the job in the journal")
    assert IMAGES == len(real.far_end.copies())
    if killed:
        os.kill(dispatcher, signal.SIGKILL)
    database.start()
    real.settle(seconds=60)

    journals = [real.far_end.copies()]
    counts = Checker(home=home, url=real.serving.url, books=real.folder / "books", journals=journals).check()
    counts.expect(duplicates=0, case="PostgreSQL stopped in the middle of a delivery")
    assert 2 * IMAGES == counts.acknowledged
    until(lambda: ends(home) == 0, seconds=20, what="an empty journal")
    assert [] == list((home / "journal").glob("*.odd"))

"""A home is served before its database is there: it takes what comes, and needs no hand when the database comes."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import Cluster, cluster
from orchestra import data_sets, files_of
from serving import Serving, until
from talaria.dimse.scu import Peer, Sender
from talaria.model.dicom import AETitle
from talaria.model.errors import Permanent, Transient
from talaria.store.ledger import Ledger
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server

RULEBOOK = """\
settings: {{series_quiet: 1s}}
listeners: {{TALARIA: {{unknown: refuse}}}}
senders: {{ct: {{ae: CT1}}}}
targets: {{out: {{kind: folder, path: {folder}/out}}}}
modules: {{same: {{builtin: pass}}}}
rules:
  all: {{when: "True", action: process, process: [same], send: [out]}}
"""


@pytest.fixture
def database() -> Iterator[Cluster]:
    """A server that may be stopped."""
    with cluster() as made:
        yield made
        if not (made.folder / "cluster" / "postmaster.pid").exists():
            made.start()


@pytest.fixture
def serving(tmp_path: Path, database: Cluster) -> Iterator[Serving]:
    """A home that was served once, and whose database is away now."""
    (tmp_path / "out").mkdir()
    found = Serving(tmp_path, url=f"{database.address}/postgres")
    found.run("init")
    found.apply(RULEBOOK.format(folder=tmp_path))
    found.start("receiver")
    until((tmp_path / "home" / "running.yaml").exists, seconds=20, what="the cached policy")
    assert 0 == found.stop()
    database.control("-m", "fast", "stop")
    yield found
    found.abandon()


def health(serving: Serving) -> tuple[int, str]:
    """What the pages say of how we are."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{serving.web_port}/health/ready", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("apart", [(), ("receiver", "router", "processor", "dispatcher", "web")], ids=["all", "apart"])
def test_database_comes_after_the_images(serving: Serving, database: Cluster, apart: tuple[str, ...]) -> None:
    """
    Started without its database it accepts by the cached policy and says that it is degraded; then all is delivered.
    """
    serving.apart = apart
    serving.token = os.urandom(24).hex()  # given after the last time that the ledger was there
    (serving.folder / "token").write_text(serving.token)
    serving.start()
    study = synthetic_ct(serving.folder / "ct", slices=4, side=16)
    tally = serving.send(*study.paths)
    stranger = _echo(serving, calling="STRANGER")
    status, said = health(serving)
    database.start()
    until(lambda: len(files_of(serving.folder / "out")) == 4, seconds=60, what="the delivery")

    assert (4, 503) == (tally["stored"], status), said
    assert "calling AE title not recognised (1/1/3)" in stranger
    assert data_sets(study.paths) == files_of(serving.folder / "out")
    until(lambda: health(serving)[0] == 200, seconds=30, what="health")
    assert [study.study_instance_uid] == [item["study_uid"] for item in serving.api("/api/v1/studies")["items"]]
    assert 0 == serving.stop()


def test_database_of_another_home_is_not_touched(serving: Serving, database: Cluster) -> None:
    """
    Where the database that comes is another home's, nothing is written into it, and `serve` ends and says why.
    """
    serving.start()
    serving.send(*synthetic_ct(serving.folder / "ct", slices=2, side=16).paths)
    database.start()
    ledger = Ledger.open(serving.url)
    with ledger.writing("test") as connection:  # before anybody has seen which it is, or just after
        connection.exec_driver_sql("UPDATE facts SET value = '01ARZ3NDEKTSV4RRFFQ69G5FAV' WHERE name = 'identity'")
    ledger.close()
    code = serving.processes[0].wait(60)

    assert 0 != code
    assert "belongs to ledger" in serving.log.read_text()
    assert 2 == len(list((serving.folder / "home" / "spool" / "new").glob("*.dcm"))) or _is_indexed(serving)


def _is_indexed(serving: Serving) -> bool:
    """Whether the ledger was still ours when the images were written down."""
    return bool(list((serving.folder / "home" / "spool" / "store").rglob("*.dcm")))


def test_drained_home_refuses_new_associations(serving: Serving, database: Cluster) -> None:
    """
    Drained, a receiver refuses with 2/3/1 within seconds, also while the ledger is away, until it is undrained.
    """
    database.start()
    serving.start("receiver")
    serving.run("drain")
    until(lambda: _refused(serving), seconds=20, what="a refusal")
    database.control("-m", "fast", "stop")
    assert _refused(serving)
    database.start()
    serving.run("drain", "--end")
    until(lambda: not _refused(serving), seconds=20, what="an association")


def _refused(serving: Serving) -> bool:
    return "temporary congestion (2/3/1)" in _echo(serving)


def _echo(serving: Serving, *, calling: str = "CT1") -> str:
    """Why a C-ECHO is refused; empty where it is answered."""
    peer = Peer(host="127.0.0.1", port=serving.dicom_port, called_ae=AETitle("TALARIA"), calling_ae=AETitle(calling))
    try:
        with Sender(peer, []) as sender:
            sender.echo()
    except (Transient, Permanent) as error:
        return str(error)
    return ""

"""How `talaria serve` lives and dies."""

import os
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving import ON_BOTH, Serving, answers, until
from talaria.store.ledger import Ledger
from talaria.store.revisions import Revisions

pytestmark = pytest.mark.server


@ON_BOTH
def test_service_that_dies_is_started_again(serving: Serving) -> None:
    """
    A killed receiver is back within seconds, and the others go on.
    """
    serving.start()
    (first,) = until(lambda: serving.pids("receiver"), seconds=20, what="the receiver")
    os.kill(first, signal.SIGKILL)
    again = until(lambda: serving.pids("receiver") - {first}, seconds=20, what="the receiver again")

    assert 1 == len(again)
    until(lambda: answers(serving.dicom_port), seconds=10, what="reception")
    serving.run("echo", "--to", f"127.0.0.1:{serving.dicom_port}", "--called", "TALARIA")
    assert 0 == serving.stop()


@ON_BOTH
def test_sigterm_ends_it_in_good_order(serving: Serving) -> None:
    """
    SIGTERM ends every service; exit code 0, nothing left, ports free.
    """
    serving.start()
    began = time.monotonic()

    assert 0 == serving.stop()
    assert time.monotonic() - began < 15
    assert not answers(serving.dicom_port)
    assert not answers(serving.web_port)


def test_children_die_with_the_supervisor(serving: Serving) -> None:
    """
    A supervisor that is killed alone leaves no service behind.
    """
    serving.start()
    os.kill(serving.pid, signal.SIGKILL)

    until(lambda: not answers(serving.dicom_port), seconds=10, what="the end of the receiver")
    until(lambda: not answers(serving.web_port), seconds=10, what="the end of the pages")


@ON_BOTH
def test_rulebook_that_is_not_understood_stops_no_service(serving: Serving) -> None:
    """
    Where the newest revision names a plug that is gone, `serve` starts, and says why the revision does not run.
    """
    ledger = Ledger.open(serving.url)
    Revisions(ledger).save("targets: {x: {kind: ours}}\nrules: {}\n", author="eve", now=datetime.now(UTC))
    ledger.close()
    serving.start()

    assert "the newest rulebook cannot be taken up" in serving.log.read_text()
    assert 0 == serving.stop()


def test_second_full_serve_on_one_home_is_refused(serving: Serving) -> None:
    """
    Two full `serve` on one home would do everything twice; the second says who runs and what to do.
    """
    serving.start()
    said = serving.run("serve", code=1)

    assert "another `talaria serve` runs on it" in said
    assert f"process {serving.pid}" in said


def test_home_that_is_not_set_up_is_refused(tmp_path: Path) -> None:
    """
    Nothing is made silently where a disk may just not be mounted.
    """
    said = Serving(tmp_path).run("serve", code=1)

    assert "is not set up" in said
    assert "talaria init" in said


def test_home_of_another_ledger_is_refused(tmp_path: Path, serving: Serving) -> None:
    """
    A home belongs to the ledger it was made with.
    """
    other = tmp_path / "other"
    other.mkdir()
    another = Serving(other)
    another.run("init")
    shutil.copy(other / "home" / "ledger.db", tmp_path / "home" / "ledger.db")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / "home" / name).unlink(missing_ok=True)
    said = serving.run("serve", code=1)

    assert "belongs to ledger" in said


def test_spool_that_is_gone_is_never_made_again(tmp_path: Path, serving: Serving) -> None:
    """
    A spool without its marker looks like a disk that is not mounted; `serve` says so.
    """
    shutil.rmtree(tmp_path / "home" / "spool")
    (tmp_path / "home" / "spool").mkdir()
    said = serving.run("serve", code=1)

    assert "is its disk mounted?" in said
    assert [] == list((tmp_path / "home" / "spool").iterdir())


def test_port_of_another_home_is_refused(tmp_path: Path, serving: Serving) -> None:
    """
    Receivers of one home share a port; another home on it would be given half of the images.
    """
    serving.start()
    (tmp_path / "other").mkdir()
    other = Serving(tmp_path / "other", TALARIA_DICOM_PORT=str(serving.dicom_port))
    other.run("init")

    assert "another program or another home listens there" in other.run("serve", code=1)

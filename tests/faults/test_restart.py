"""A restart with ten thousand studies in the queue."""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_scu import data_digest, freight_of
from real import Real
from stage import Pool

from serving import Serving, answers, until
from sink import Sink
from talaria.store.ledger import Ledger
from talaria.store.schema import case_series, cases, deliveries, instances, job_series, jobs, series, studies
from talaria.store.spool import Spool, new_ulid

pytestmark = pytest.mark.server

STUDIES = 10_000
_AT_ONCE = 1000


def queue_studies(ledger: Ledger, spool: Spool, source: Path, *, count: int) -> None:
    """Studies of one image each, routed, with a delivery that waits; every file is a link to the same bytes."""
    now = datetime.now(UTC)
    digest = bytes.fromhex(data_digest(source))
    with ledger.engine.begin() as connection:
        for first in range(1, count + 1, _AT_ONCE):
            some = range(first, first + _AT_ONCE)
            names = {number: new_ulid(now) for number in some}
            for name in names.values():
                os.link(source, spool.root / "store" / name[-2:] / f"{name}.dcm")
            for table, row in _rows(names, spool.name, digest, source.stat().st_size, now).items():
                connection.execute(table.insert(), [row(number) for number in some])


def _rows(
    names: Mapping[int, str], spool: str, digest: bytes, size_bytes: int, now: datetime
) -> dict[sa.Table, Callable[[int], dict[str, Any]]]:
    """For each table, what makes its row of a study's number."""
    due = now - timedelta(seconds=1)
    empty = dict.fromkeys(
        ("patient_id", "patient_name", "accession_number", "study_date", "study_description"), ""
    )  # fmt: skip
    return {
        studies: lambda n: {
            "id": n, "study_instance_uid": f"1.2.{n}", "first_received": now, "last_received": now, **empty
        },
        series: lambda n: {
            "id": n, "study_id": n, "series_instance_uid": f"1.2.{n}.1", "modality": "CT", "series_description": "",
            "calling_ae": "CT1", "called_ae": "TALARIA", "address": "127.0.0.1", "tags": "{}", "instances": 1,
            "size_bytes": size_bytes, "first_received": now, "last_received": now, "portions": 1,
            "asked": '["plain"]', "settled": True,
        },
        instances: lambda n: {
            "id": names[n], "series_id": n, "sop_instance_uid": f"1.2.{n}.1.1",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "size_bytes": size_bytes, "sha256": digest, "spool": spool, "association": "", "received": now,
            "portion": 1,
        },
        cases: lambda n: {
            "id": n, "study_id": n, "series_id": n, "rule": "plain", "revision": 2, "state": "closed", "reason": "",
            "opened": now, "updated": now,
        },
        case_series: lambda n: {"case_id": n, "series_id": n, "covered": 1},
        jobs: lambda n: {
            "id": n, "kind": "dispatch", "state": "pending", "study_id": n, "series_id": n, "case_id": n,
            "rule": "plain", "revision": 2, "target": "share", "priority": 1, "supplement": 0, "created": now,
            "due": due, "updated": now, "since": now, "spool": spool, "ready": True, "key": f"dispatch:{n}",
        },
        job_series: lambda n: {"job_id": n, "series_id": n, "first": 1, "last": 1},
        deliveries: lambda n: {"id": secrets.token_hex(13), "job_id": n, "target": "share", "total": 1},
    }  # fmt: skip


@pytest.fixture
def queued(tmp_path: Path, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A home with that queue; nothing runs yet."""
    real = Real(Serving(tmp_path), far_end, pool)
    real.prepare()
    source = tmp_path / "source.dcm"
    source.write_bytes(pool.study(0)[0].read_bytes())
    source.chmod(0o444)
    with real.opened() as ledger:
        queue_studies(ledger, Spool.open(real.spool, clock=lambda: datetime.now(UTC)), source, count=STUDIES)
    yield real
    real.serving.abandon()


def test_restart_with_ten_thousand_studies_queued(queued: Real) -> None:
    """
    Images are taken within 5 s of the start, a page of the queue comes within 1 s, and the queue goes down (R11).
    """
    began = time.monotonic()
    queued.serving.launch()
    queued.waiting += freight_of(queued.pool.study(1))
    while queued.waiting:
        queued.waiting = queued.scu().send(queued.waiting)
        assert time.monotonic() - began < 5, "no image was taken"
    taken = time.monotonic() - began
    until(lambda: answers(queued.serving.web_port), seconds=20, what="the API")
    asked = time.monotonic()
    page = queued.serving.api("/api/v1/jobs?limit=100")
    paged = time.monotonic() - asked
    until(lambda: waiting(queued) < STUDIES - 20, seconds=30, what="deliveries")
    print(f"{STUDIES} queued: image taken after {taken:.1f} s, queue page in {paged:.2f} s")

    assert taken <= 5
    assert 100 == len(page["items"])
    assert paged <= 1


def waiting(real: Real) -> int:
    """Jobs that wait."""
    with real.opened() as ledger, ledger.reading() as connection:
        found = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == "pending")
        return int(connection.execute(found).scalar_one())

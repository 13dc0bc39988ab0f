"""What the ledger may forget, and what it never does."""

import json
import sqlite3
from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import SPOOL, Rows, arrival, series_of
from talaria.model.dicom import Tags
from talaria.model.job import Event
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.store.pruning import CREDENTIALS_KEPT, LOG_KEPT, Pruning
from talaria.store.schema import credentials, runs, series
from talaria.testing import MovedClock

DAY = timedelta(days=1)


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


@pytest.fixture
def pruning(ledger: Ledger) -> Pruning:
    return Pruning(ledger)


def cleaned(rows: Rows) -> None:
    """A series delivered, and its files gone."""
    rows.receive(*series_of(2))
    rows.settle()
    rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())
    (candidate,) = rows.cleaning.candidates(spool=SPOOL, before=rows.clock.now())[0]
    rows.cleaning.mark(candidate, reason="retention is over", now=rows.clock.now())


def document(rows: Rows) -> dict[str, str | None]:
    with rows.ledger.reading() as connection:
        return Tags.from_json(connection.execute(sa.select(series.c.tags)).scalar_one()).as_document()


def widen(rows: Rows) -> None:
    """Record one tag more than those that last."""
    with rows.ledger.writing("test") as connection:
        text = json.dumps({**document(rows), "ImageComments": "long"})
        connection.execute(sa.update(series).values(tags=text))


def test_tags_of_what_is_gone_are_reduced(rows: Rows, pruning: Pruning) -> None:
    """
    Of a series without files the lasting tags stay, and absent ones among them stay absent; once is enough.
    """
    cleaned(rows)
    widen(rows)
    early, late = rows.clock.now() - 2 * DAY, rows.clock.now() + DAY

    assert [0, 1, 0] == [pruning.reduce_tags(before=before) for before in (early, late, late)]
    assert {"Modality": "CT", "PatientID": "P1", "SeriesDescription": "S1", "PatientName": None} == document(rows)


def test_tags_of_what_is_here_are_whole(rows: Rows, pruning: Pruning) -> None:
    """
    While a series has files it may be sent, and rules may be asked of it: its tags stay.
    """
    rows.jobs_of()

    assert 0 == pruning.reduce_tags(before=rows.clock.now() + DAY)


def test_received_again_has_all_its_tags(rows: Rows, pruning: Pruning) -> None:
    """
    A series that comes again after its tags were reduced is recorded as if it were new, and reduced again in its time.
    """
    cleaned(rows)
    with rows.ledger.writing("test") as connection:
        connection.execute(sa.update(series).values(tags='{"ImageComments":"old","Modality":"MR"}'))
    pruning.reduce_tags(before=rows.clock.now() + DAY)
    assert {"Modality": "MR"} == document(rows)
    rows.receive(arrival("9"))

    assert "CT" == document(rows)["Modality"]
    assert 0 == pruning.reduce_tags(before=rows.clock.now() + DAY)


def run_of(rows: Rows, *, attempt: int, code: int) -> None:
    with rows.ledger.writing("test") as connection:
        connection.execute(
            runs.insert().values(
                job_id=1, attempt=attempt, step=1, module="lung", code=code, reason="", seconds=1.0, log="said",
                ended=rows.clock.now(),
            )
        )  # fmt: skip


def test_logs_go_and_runs_stay(rows: Rows, pruning: Pruning) -> None:
    """
    The log of a step that went well goes after a month, of the others with the tags; that it ran is never forgotten.
    """
    rows.jobs_of()
    run_of(rows, attempt=1, code=1)
    run_of(rows, attempt=2, code=0)
    now = rows.clock.move(LOG_KEPT + DAY)

    def logs() -> list[str]:
        with rows.ledger.reading() as connection:
            return list(connection.execute(sa.select(runs.c.log).order_by(runs.c.attempt)).scalars())

    assert [1, 0] == [pruning.drop_logs(now=now, before=now - 400 * DAY) for _ in range(2)]
    assert ["said", ""] == logs()
    assert 1 == pruning.drop_logs(now=now, before=now)
    assert ["", ""] == logs()


def test_expired_credentials_go(rows: Rows, pruning: Pruning) -> None:
    """
    What expired long ago goes; what never expires stays.
    """
    with rows.ledger.writing("test") as connection:
        for number, expires in enumerate((None, rows.clock.now(), rows.clock.now() + CREDENTIALS_KEPT)):
            connection.execute(
                credentials.insert().values(
                    digest=str(number), kind="token", name="n", created=rows.clock.now(), expires=expires
                )
            )
    now = rows.clock.move(CREDENTIALS_KEPT + DAY)

    assert [1, 0] == [pruning.forget_credentials(now=now) for _ in range(2)]


def test_checkpoint_waits_for_no_endless_reader(rows: Rows, pruning: Pruning, ledger_url: str) -> None:
    """
    SQLite's log is emptied when nobody reads from it; with a reader that never ends we go on without.
    """
    rows.jobs_of(3)
    if not ledger_url.startswith("sqlite"):
        assert (0, True) == (pruning.log_bytes(), pruning.checkpoint())
        return
    reader = sqlite3.connect(ledger_url.removeprefix("sqlite:///"), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    with rows.ledger.writing("test") as connection:
        write_event(connection, "test", now=rows.clock.now(), subject=Subject())
    while_reading = pruning.checkpoint()
    reader.execute("COMMIT")
    reader.close()

    assert (False, True) == (while_reading, pruning.checkpoint())
    assert 0 == pruning.log_bytes()


def test_stock_is_taken(rows: Rows, pruning: Pruning) -> None:
    """
    Counting rows changes nothing that anybody sees.
    """
    rows.jobs_of(3)
    before = rows.listing.jobs()
    pruning.take_stock()

    assert before == rows.listing.jobs()

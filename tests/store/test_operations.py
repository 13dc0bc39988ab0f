"""Acts on many jobs: chosen by ids or by what fits, a portion at a time, each by its own state."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa

from rows import HEAD, ORIGIN, SHELVES, TO_X, Rows
from talaria.model.errors import Refused
from talaria.model.job import Event, State
from talaria.store.ledger import Ledger
from talaria.store.operations import Operations
from talaria.store.revisions import Revisions, Rulebooks
from talaria.store.schema import events, jobs
from talaria.store.selection import Selection
from talaria.testing import MovedClock

ANY = Selection(rule="to-x")


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


@pytest.fixture
def operations(rows: Rows, tmp_path: Path) -> Operations:
    revisions = Revisions(rows.ledger)
    revisions.save(HEAD + f"  {TO_X}\n", author="test", now=rows.clock.now())
    return Operations(rows.ledger, Rulebooks(revisions, shelves=SHELVES, cache=tmp_path / "running.yaml"))


def multiply(rows: Rows, count: int) -> None:
    """So many jobs like the last."""
    with rows.ledger.writing("test.multiply") as connection:
        row = dict(connection.execute(sa.select(jobs).order_by(jobs.c.id.desc()).limit(1)).one()._mapping)
        del row["id"]
        connection.execute(jobs.insert(), [{**row, "key": f"copy {number}"} for number in range(count)])


def states(rows: Rows) -> dict[str, int]:
    """How many jobs are in each state."""
    with rows.ledger.reading() as connection:
        found = connection.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)).all()
    return {state: count for state, count in found}  # noqa: C416 - rows, not pairs


def told(rows: Rows, kind: str) -> list[Mapping[str, Any]]:
    """The details of all events of a kind, with who did it."""
    with rows.ledger.reading() as connection:
        found = connection.execute(sa.select(events).where(events.c.kind == kind).order_by(events.c.id)).all()
    return [{"actor": row.actor, **json.loads(row.detail)} for row in found]


def test_ten_thousand_jobs_in_seconds(rows: Rows, operations: Operations) -> None:
    """
    All that fits is acted on in portions, each job with its own event, and one event tells of the whole.
    """
    rows.jobs_of(1)
    multiply(rows, 9_999)
    began = monotonic()
    acted = operations.act(ANY, Event.HOLD, actor="ada", now=rows.clock.now())

    assert (10_000, 0) == (acted.done, acted.refusals)
    assert monotonic() - began < 60
    assert {"held": 10_000} == states(rows)
    assert 10_000 == len(told(rows, "job.hold"))
    assert [
        {"actor": "ada", "act": "hold", "selection": {"rule": "to-x"}, "done": 10_000, "refused": 0}
    ] == told(rows, "operation")  # fmt: skip


def test_each_job_by_its_own_state(rows: Rows, operations: Operations) -> None:
    """
    Jobs whose state does not allow the act are counted, and the first of them told with the reason.
    """
    rows.jobs_of(4)
    for _ in range(3):
        rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())
    foreseen = operations.preview(ANY, Event.CANCEL)
    acted = operations.act(ANY, Event.CANCEL, actor="ada", now=rows.clock.now())

    assert (1, 3) == (acted.done, acted.refusals) == (foreseen.done, foreseen.refusals)
    assert "job 1: a job that is done cannot cancel; possible now: restart" == acted.refused[0]
    assert ("3 of them: a job that is done cannot cancel; possible now: restart",) == foreseen.refused
    assert {"done": 3, "cancelled": 1} == states(rows)


def test_nothing_chosen_is_refused(rows: Rows, operations: Operations) -> None:
    """
    All jobs are meant only where that was said.
    """
    rows.jobs_of(2)
    with pytest.raises(Refused, match="no job was chosen"):
        operations.act(Selection(), Event.HOLD, actor="ada", now=rows.clock.now())

    assert 2 == operations.act(Selection(), Event.HOLD, actor="ada", now=rows.clock.now(), everything=True).done


def test_jobs_that_are_not_there_are_refused(rows: Rows, operations: Operations) -> None:
    """
    A number that no job has is refused by name, however large; the others are acted on.
    """
    (job_id,) = rows.jobs_of(1)
    acted = operations.act(Selection(ids=(job_id, 77, 1 << 70)), Event.HOLD, actor="ada", now=rows.clock.now())

    assert (1, 2) == (acted.done, acted.refusals)
    assert "there is no job 77; `talaria jobs list` shows what there is" == acted.refused[0]


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection(state="pending"), 3),
        (Selection(rule="to-x", target="x", kind="dispatch"), 3),
        (Selection(target="y"), 0),
        (Selection(calling_ae=ORIGIN.calling_ae), 3),
        (Selection(calling_ae="CT2"), 0),
        (Selection(study_uid="1.2.900001"), 0),
        (Selection(since=MovedClock().now() - timedelta(days=1)), 3),
        (Selection(until=MovedClock().now() - timedelta(days=1)), 0),
        (Selection(ids=(1, 2), state="pending"), 2),
    ],
    ids=str,
)
def test_what_fits(rows: Rows, operations: Operations, selection: Selection, count: int) -> None:
    """
    A job fits when every field that is given does.
    """
    rows.jobs_of(3)
    job = rows.jobs.show(2)

    assert count == operations.count(selection)
    assert count == len(rows.listing.jobs(selection=selection).items)
    assert 1 == operations.count(Selection(study_uid=job.study_instance_uid))
    assert 1 == operations.count(Selection(series_uid=job.series_instance_uid))


def test_two_people_at_once(rows: Rows, operations: Operations) -> None:
    """
    Two who act on the same jobs at once: each job has one of the two, and both are told how many they got.
    """
    rows.jobs_of(1)
    multiply(rows, 999)
    now = rows.clock.now()
    with ThreadPoolExecutor(2) as people:
        found = list(people.map(lambda who: operations.act(ANY, Event.HOLD, actor=who, now=now), ["ada", "bob"]))

    assert 1000 == sum(acted.done for acted in found) == sum(acted.refusals for acted in found)
    assert {"held": 1000} == states(rows)
    assert 1000 == len(told(rows, "job.hold"))


def test_jobs_made_meanwhile_are_left_alone(rows: Rows, operations: Operations) -> None:
    """
    What is released while others work is claimed by them, and the act comes to its end.
    """
    rows.jobs_of(3)
    operations.act(ANY, Event.HOLD, actor="ada", now=rows.clock.now())
    operations.act(Selection(state="held"), Event.RELEASE, actor="ada", now=rows.clock.now())

    assert State.ACTIVE is rows.claim().job.state
    assert {"active": 1, "pending": 2} == states(rows)

"""Outcomes that became a count and a digest: nothing that can be asked for is lost."""

import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rows import SPOOL, Rows, arrival, series_of
from talaria.model.errors import Permanent, Refused
from talaria.model.extensions import Delivery, Outcome, Standing
from talaria.model.job import Event, State
from talaria.store.compaction import NEVER, REST, Compaction
from talaria.store.ledger import Ledger
from talaria.store.schema import deliveries, instances, outcomes
from talaria.testing import MovedClock

AGED = timedelta(days=400)


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


@pytest.fixture
def compaction(ledger: Ledger) -> Compaction:
    return Compaction(ledger)


def compact(rows: Rows, compaction: Compaction, *, after: timedelta = REST) -> int:
    """Let time pass, and compact all there is; how many."""
    rows.clock.move(after)
    place: int | None = 0
    total = 0
    while place is not None:
        count, place = compaction.step(after=place, now=rows.clock.now(), aged=AGED)
        total += count
    return total


def note(rows: Rows, delivery: Delivery, found: Iterable[Outcome]) -> None:
    rows.deliveries.record(delivery, list(found), now=rows.clock.now(), seconds=1, size_bytes=1)


def deliver(rows: Rows, *, status: int | None = 0) -> int:
    """Deliver the next job whole; its number."""
    claim = rows.claim()
    delivery = rows.deliveries.prepare(claim, locate=Path).delivery
    note(rows, delivery, (plain(parcel.instance_id, status) for parcel in delivery.parcels))
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    return claim.job.id


def plain(instance_id: str, status: int | None = 0) -> Outcome:
    return Outcome(instance_id=instance_id, standing=Standing.SENT, status=status)


def left(ledger: Ledger) -> list[tuple[str, int]]:
    """Standing and times sent of the rows that are left."""
    with ledger.reading() as connection:
        found = sa.select(outcomes.c.standing, outcomes.c.times_sent).order_by(outcomes.c.instance_id)
        return [tuple(row) for row in connection.execute(found)]


def history(rows: Rows, uids: Iterable[str]) -> list[Any]:
    """All that is told of instances, but for the second at which each was sent."""
    return [[_without_seconds(version) for version in rows.listing.instance(uid)] for uid in uids]


def _without_seconds(version: Any) -> Any:
    sent = [{**one, "time": None} for one in version["deliveries"]]
    life = [{**one, "time": None if one["kind"] == "instance.sent" else one["time"]} for one in version["life"]]
    return {**version, "deliveries": sorted(sent, key=str), "life": sorted(life, key=str)}


UIDS = [f"1.2.1.1.{number}" for number in range(1, 30)]


@pytest.mark.parametrize("status", [0, None])
def test_plain_outcomes_become_a_count_and_a_digest(rows: Rows, compaction: Compaction, status: int | None) -> None:
    """
    What was sent once without a word has no row any more, and its history is as before.
    """
    rows.receive(*series_of(5))
    rows.settle()
    job_id = deliver(rows, status=status)
    before = history(rows, UIDS)

    assert (0, 1) == (compact(rows, compaction, after=REST / 2), compact(rows, compaction))
    assert [] == left(rows.ledger)
    assert before == history(rows, UIDS)
    assert compaction.is_intact(job_id)
    assert [(5, 5)] == [(line.sent, line.total) for line in rows.listing.deliveries().items]


def test_compacting_again_changes_nothing(rows: Rows, compaction: Compaction) -> None:
    """
    What was compacted is not looked at again.
    """
    rows.jobs_of(3)
    for _ in range(3):
        deliver(rows)

    assert [3, 0] == [compact(rows, compaction) for _ in range(2)]


def test_exceptions_stay(rows: Rows, compaction: Compaction) -> None:
    """
    A warning, a word of the far end and what was sent twice keep their rows; the others are told apart from them.
    """
    rows.receive(*series_of(6))
    rows.settle()
    claim = rows.claim()
    delivery = rows.deliveries.prepare(claim, locate=Path).delivery
    ids = [parcel.instance_id for parcel in delivery.parcels]
    note(rows, delivery, [plain(ids[1])])
    note(rows, delivery, [Outcome(instance_id=ids[0], standing=Standing.WARNED, status=0xB000), plain(ids[1])])
    note(rows, delivery, [Outcome(instance_id=ids[2], standing=Standing.SENT, detail="moved"), *map(plain, ids[3:])])
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    before = history(rows, UIDS)
    compact(rows, compaction)

    assert [("warned", 1), ("sent", 2), ("sent", 1)] == left(rows.ledger)
    assert before == history(rows, UIDS)
    assert compaction.is_intact(claim.job.id)


def test_what_was_never_sent_is_not_taken_for_sent(rows: Rows, compaction: Compaction) -> None:
    """
    Of the same portion, a version that was replaced before it was sent has no outcome, before and after.
    """
    rows.receive(*series_of(4), arrival("2", content="b"))
    rows.settle()
    job_id = deliver(rows)
    rows.receive(arrival("3", content="late"))  # replaced after it was sent
    before = history(rows, UIDS)
    compact(rows, compaction)
    (old, new), (sent, late) = rows.listing.instance("1.2.1.1.2"), rows.listing.instance("1.2.1.1.3")

    assert [(NEVER, 0)] == left(rows.ledger)
    assert [0, 1, 1, 0] == [len(version["deliveries"]) for version in (old, new, sent, late)]
    assert before == history(rows, UIDS)
    assert compaction.is_intact(job_id)


def test_history_outlives_the_files(rows: Rows, compaction: Compaction) -> None:
    """
    After compaction and cleaning, and after the study came again, each version tells where it went.
    """
    rows.receive(*series_of(3))
    rows.settle()
    deliver(rows)
    compact(rows, compaction)
    (candidate,) = rows.cleaning.candidates(spool=SPOOL, before=rows.clock.now())[0]
    rows.cleaning.mark(candidate, reason="retention is over", now=rows.clock.now())
    rows.clock.move(timedelta(days=1))
    rows.receive(*series_of(3))
    rows.settle()
    deliver(rows)
    before = history(rows, UIDS)
    compact(rows, compaction)
    first, second = rows.listing.instance("1.2.1.1.1")

    assert before == history(rows, UIDS)
    assert [[1], [2]] == [[sent["job_id"] for sent in version["deliveries"]] for version in (first, second)]
    assert first["dropped"] is not None


@pytest.mark.parametrize("seed", range(4))
def test_any_delivery_tells_the_same(rows: Rows, compaction: Compaction, seed: int) -> None:
    """
    Whatever became of the instances over several attempts, and whatever was replaced meanwhile: the same is told.
    """
    dice = random.Random(seed)
    rows.receive(
        *(arrival(str(n), content=str(version)) for n in range(1, 13) for version in range(dice.randint(1, 2)))
    )
    rows.settle()
    claim = rows.claim()
    for attempt in range(3):
        delivery = rows.deliveries.prepare(claim, locate=Path).delivery
        some = [parcel for parcel in delivery.parcels if attempt == 2 or dice.random() < 0.7]
        note(rows, delivery, [_any(dice, parcel.instance_id) for parcel in some])
        if attempt < 2:
            rows.jobs.end(claim, Event.DEFER, now=rows.clock.now(), due=rows.clock.now())
            rows.receive(arrival(str(dice.randint(1, 12)), content=f"late {attempt}"))
            claim = rows.claim()
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    before = history(rows, UIDS)
    compact(rows, compaction)

    assert before == history(rows, UIDS)


def _any(dice: random.Random, instance_id: str) -> Outcome:
    kind = dice.choice(["plain", "plain", "plain", "warned", "detail", "verified"])
    if kind == "plain":
        return plain(instance_id)
    standing = {"warned": Standing.WARNED, "verified": Standing.VERIFIED}.get(kind, Standing.SENT)
    return Outcome(instance_id=instance_id, standing=standing, detail="a word" if kind == "detail" else "")


def test_restart_sends_everything_again(rows: Rows, compaction: Compaction) -> None:
    """
    A compacted delivery that a person begins again is about all its instances, and counts that they go twice.
    """
    rows.receive(*series_of(3), arrival("2", content="b"))
    rows.settle()
    job_id = deliver(rows)
    compact(rows, compaction)
    rows.jobs.act(job_id, Event.RESTART, actor="eve", now=rows.clock.now())
    began_again = left(rows.ledger)
    deliver(rows)

    assert [("pending", 1)] * 3 == began_again
    assert [("sent", 2)] * 3 == left(rows.ledger)
    assert [(3, 3, "done")] == [(line.sent, line.total, line.state) for line in rows.listing.deliveries().items]
    with pytest.raises(Refused, match="there are no compacted outcomes"):
        compaction.is_intact(job_id)


def test_failed_long_ago_is_compacted_and_can_be_tried_again(rows: Rows, compaction: Compaction) -> None:
    """
    Of what failed long ago the refusals stay as rows; a retry offers these alone.
    """
    rows.receive(*series_of(4))
    rows.settle()
    claim = rows.claim()
    delivery = rows.deliveries.prepare(claim, locate=Path).delivery
    ids = [parcel.instance_id for parcel in delivery.parcels]
    note(rows, delivery, [*map(plain, ids[:3]), Outcome(instance_id=ids[3], standing=Standing.FAILED, detail="no")])
    rows.jobs.end(claim, Event.FAIL, now=rows.clock.now())
    assert (0, 1) == (compact(rows, compaction), compact(rows, compaction, after=AGED))
    assert [("failed", 1)] == left(rows.ledger)
    rows.jobs.act(claim.job.id, Event.RETRY, actor="eve", now=rows.clock.now())
    delivery = rows.deliveries.prepare(rows.claim(), locate=Path).delivery

    assert [ids[3]] == [parcel.instance_id for parcel in delivery.parcels]


def test_nothing_sent_is_not_compacted(rows: Rows, compaction: Compaction) -> None:
    """
    A delivery cancelled before anything went tells nothing as sent, and is begun again whole.
    """
    rows.receive(*series_of(3))
    (job_id,) = rows.settle()
    rows.jobs.act(job_id, Event.CANCEL, actor="eve", now=rows.clock.now())
    compact(rows, compaction, after=AGED)
    assert [] == rows.listing.instance("1.2.1.1.1")[0]["deliveries"]
    rows.jobs.act(job_id, Event.RESTART, actor="eve", now=rows.clock.now())
    delivery = rows.deliveries.prepare(rows.claim(), locate=Path).delivery

    assert 3 == len(delivery.parcels)


def test_large_delivery_is_compacted_in_pieces(
    rows: Rows, compaction: Compaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    No transaction removes more than some rows; killed between two it goes on, and the history is right at each.
    """
    monkeypatch.setattr("talaria.store.compaction._MOST_ROWS", 2)
    rows.receive(*series_of(7))
    rows.settle()
    job_id = deliver(rows)
    before = history(rows, UIDS)
    with monkeypatch.context() as killed:
        killed.setattr(Compaction, "_finish", _one_piece)
        compact(rows, compaction)
    halfway, told = left(rows.ledger), history(rows, UIDS)
    compact(rows, compaction)

    assert (5, 0) == (len(halfway), len(left(rows.ledger)))
    assert before == told == history(rows, UIDS)
    assert compaction.is_intact(job_id)


def _one_piece(compaction: Compaction, delivery_id: str, *, now: datetime) -> None:
    """A compaction that is killed after it removed its first rows."""
    from talaria.store.compaction import _remove_plain

    with compaction._ledger.writing("test.piece") as connection:
        row = connection.execute(sa.select(deliveries).where(deliveries.c.id == delivery_id)).one()
        _remove_plain(connection, row)


def test_restart_halfway_forgets_nothing(rows: Rows, compaction: Compaction, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A person who begins a job again between two pieces gets all of it, each once.
    """
    monkeypatch.setattr("talaria.store.compaction._MOST_ROWS", 2)
    monkeypatch.setattr(Compaction, "_finish", _one_piece)
    rows.receive(*series_of(7))
    rows.settle()
    job_id = deliver(rows)
    compact(rows, compaction)
    rows.jobs.act(job_id, Event.RESTART, actor="eve", now=rows.clock.now())

    assert [("pending", 1)] * 7 == left(rows.ledger)


def test_begun_again_meanwhile_is_left_alone(
    rows: Rows, compaction: Compaction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Between looking and writing a person began the job again: its outcomes are not touched.
    """
    rows.receive(*series_of(3))
    rows.settle()
    job_id = deliver(rows)
    write = Compaction._compact

    def late(compaction: Compaction, *arguments: Any, **options: Any) -> None:
        rows.jobs.act(job_id, Event.RESTART, actor="eve", now=rows.clock.now())
        write(compaction, *arguments, **options)

    monkeypatch.setattr(Compaction, "_compact", late)
    compact(rows, compaction)

    assert [("pending", 1)] * 3 == left(rows.ledger)
    assert State.PENDING == rows.jobs.show(job_id).state


def test_digest_tells_of_a_change(rows: Rows, compaction: Compaction) -> None:
    """
    A row that was changed behind our back does not fit the digest.
    """
    rows.receive(*series_of(3))
    rows.settle()
    job_id = deliver(rows)
    compact(rows, compaction)
    with rows.ledger.writing("test") as connection:
        connection.execute(sa.update(instances).where(instances.c.sop_instance_uid == UIDS[0]).values(sha256=bytes(32)))

    assert not compaction.is_intact(job_id)


def test_retention_before_the_retry_is_told(rows: Rows, compaction: Compaction) -> None:
    """
    A compacted delivery whose files are gone cannot be begun again, and says so.
    """
    rows.receive(*series_of(3))
    rows.settle()
    job_id = deliver(rows)
    compact(rows, compaction)
    (candidate,) = rows.cleaning.candidates(spool=SPOOL, before=rows.clock.now())[0]
    rows.cleaning.mark(candidate, reason="retention is over", now=rows.clock.now())
    rows.jobs.act(job_id, Event.RESTART, actor="eve", now=rows.clock.now())

    with pytest.raises(Permanent, match="removed by retention"):
        rows.deliveries.prepare(rows.claim(), locate=Path)

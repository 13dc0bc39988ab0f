"""What is delivered where, and what is still missing there."""

from datetime import timedelta
from pathlib import Path

import pytest

from rows import ORIGIN, Rows, arrival, series_of
from talaria.model.extensions import Delivery, Outcome, Standing
from talaria.model.job import Event
from talaria.store.deliveries import Tally
from talaria.store.jobs import Claim
from talaria.store.ledger import Ledger
from talaria.testing import MovedClock


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def prepared(rows: Rows) -> tuple[Claim, Delivery]:
    """A delivery of three instances, claimed."""
    rows.receive(*series_of(3))
    rows.settle()
    claim = rows.claim()
    return claim, rows.deliveries.prepare(claim, locate=Path)[0]


def note(rows: Rows, delivery: Delivery, *standings: Standing, first: int = 0) -> None:
    """Write down what became of the first parcels."""
    found = [
        Outcome(instance_id=parcel.instance_id, standing=standing, detail=f"said {standing}")
        for parcel, standing in zip(delivery.parcels[first:], standings, strict=False)
    ]
    rows.deliveries.record(delivery, found, now=rows.clock.now(), seconds=1.5, size_bytes=100 * len(found))


def again(rows: Rows, claim: Claim) -> Delivery:
    """The next attempt of a deferred job."""
    rows.jobs.end(claim, Event.DEFER, now=rows.clock.now(), due=rows.clock.now())
    return rows.deliveries.prepare(rows.claim(), locate=Path)[0]


def test_delivery_is_whole_at_first(rows: Rows) -> None:
    """
    The first attempt is about every instance in the order of arrival, and tells who sent them.
    """
    claim, delivery = prepared(rows)

    assert ["1.2.1.1.1", "1.2.1.1.2", "1.2.1.1.3"] == [parcel.sop_instance_uid for parcel in delivery.parcels]
    assert (3, ORIGIN, "S1", 1, "to-x") == (
        delivery.total, delivery.origin, delivery.tags["SeriesDescription"], claim.job.attempt, delivery.rule
    )  # fmt: skip


def test_only_what_is_missing_is_sent_again(rows: Rows) -> None:
    """
    The next attempt, under the same id, is about what has no outcome yet.
    """
    claim, delivery = prepared(rows)
    note(rows, delivery, Standing.SENT, Standing.WARNED)
    second = again(rows, claim)

    assert (delivery.id, 3, ["1.2.1.1.3"]) == (second.id, second.total, [p.sop_instance_uid for p in second.parcels])


def test_what_was_refused_is_not_offered_again(rows: Rows) -> None:
    """
    An instance that the far end will not take is not sent again by itself.
    """
    claim, delivery = prepared(rows)
    note(rows, delivery, Standing.FAILED)

    assert 2 == len(again(rows, claim).parcels)


def test_tally_counts(rows: Rows) -> None:
    """
    Sent, warned and verified instances are there; the reason is that of a refused one.
    """
    _, delivery = prepared(rows)
    note(rows, delivery, Standing.VERIFIED, Standing.WARNED, Standing.FAILED)

    assert Tally(total=3, there=2, failed=1, reason="said failed") == rows.deliveries.tally(delivery)


def test_later_word_stands(rows: Rows) -> None:
    """
    Of two outcomes of one instance the later stands, also within one batch, and each sending is counted.
    """
    _, delivery = prepared(rows)
    one = delivery.parcels[0].instance_id
    twice = [Outcome(instance_id=one, standing=s) for s in (Standing.FAILED, Standing.SENT)]
    rows.deliveries.record(delivery, twice, now=rows.clock.now(), seconds=0, size_bytes=0)
    note(rows, delivery, Standing.VERIFIED)
    (history,) = rows.listing.instance("1.2.1.1.1")

    assert (1, 0) == (rows.deliveries.tally(delivery).there, rows.deliveries.tally(delivery).failed)
    assert [("verified", 2)] == [(d["standing"], d["times_sent"]) for d in history["deliveries"]]


def test_record_adds_up(rows: Rows) -> None:
    """
    A delivery counts what is there, and adds up seconds and bytes of all attempts.
    """
    _, delivery = prepared(rows)
    note(rows, delivery, Standing.SENT)
    note(rows, delivery, Standing.SENT, Standing.FAILED, first=1)
    (line,) = rows.listing.deliveries().items

    assert (2, 3, 3.0, 300) == (line.sent, line.total, line.seconds, line.size_bytes)


def test_nothing_found_writes_nothing(rows: Rows) -> None:
    """
    An attempt without any outcome leaves the record as it was.
    """
    _, delivery = prepared(rows)
    rows.deliveries.record(delivery, [], now=rows.clock.now(), seconds=9, size_bytes=9)

    assert 0 == rows.listing.deliveries().items[0].seconds


def test_instance_without_a_file_is_lost(rows: Rows) -> None:
    """
    An instance whose file is gone is reported, and the others are delivered.
    """
    rows.receive(*series_of(2))
    rows.settle()

    def locate(instance_id: str) -> Path:
        if instance_id == min(rows_of(rows)):
            raise FileNotFoundError("it is gone")
        return Path(instance_id)

    delivery, lost, _ = rows.deliveries.prepare(rows.claim(), locate=locate)

    assert (1, [(Standing.FAILED, "it is gone")]) == (len(delivery.parcels), [(o.standing, o.detail) for o in lost])


def rows_of(rows: Rows) -> list[str]:
    return [version["id"] for n in (1, 2) for version in rows.listing.instance(f"1.2.1.1.{n}")]


def test_replaced_instance_does_not_count(rows: Rows) -> None:
    """
    An instance that was sent and then replaced stands for none that is missing, and one that was refused for none.
    """
    claim, delivery = prepared(rows)
    note(rows, delivery, Standing.SENT, Standing.FAILED)
    rows.receive(arrival("1", content="b"), arrival("2", content="b"))
    second = again(rows, claim)

    assert (1, ["1.2.1.1.3"]) == (second.total, [parcel.sop_instance_uid for parcel in second.parcels])
    assert Tally(total=1, there=0, failed=0, reason="") == rows.deliveries.tally(second)


def test_detail_from_outside_is_made_storable(rows: Rows) -> None:
    """
    What a far end says is kept without characters that no database takes, and not without end.
    """
    _, delivery = prepared(rows)
    said = Outcome(
        instance_id=delivery.parcels[0].instance_id, standing=Standing.FAILED, detail="no\0 \ud800" + 5000 * "x"
    )
    rows.deliveries.record(delivery, [said], now=rows.clock.now(), seconds=0, size_bytes=0)

    assert "no ?" + 996 * "x" == rows.deliveries.tally(delivery).reason


def test_late_images_are_a_delivery_of_their_own(rows: Rows) -> None:
    """
    What comes late is delivered under another id, the first delivery being over.
    """
    claim, delivery = prepared(rows)
    note(rows, delivery, *[Standing.SENT] * 3)
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    rows.receive(arrival("9"))
    rows.settle(after=timedelta(minutes=2))
    late, *_ = rows.deliveries.prepare(rows.claim(), locate=Path)

    assert delivery.id != late.id
    assert ["1.2.1.1.9"] == [parcel.sop_instance_uid for parcel in late.parcels]

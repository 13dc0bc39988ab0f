"""Writing down what arrived."""

import json
import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import QUIET, Rows, arrival, series_of
from talaria.store.arrivals import Finding
from talaria.store.ledger import Ledger
from talaria.store.schema import events, instances, received, series, studies
from talaria.testing import MovedClock


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def all_of(ledger: Ledger, table: sa.Table) -> list[sa.RowMapping]:
    with ledger.reading() as connection:
        return list(connection.execute(sa.select(table).order_by(*table.primary_key)).mappings())


def kinds(ledger: Ledger) -> list[str]:
    return [row["kind"] for row in all_of(ledger, events)]


def test_new_instance_makes_its_study_and_series(rows: Rows) -> None:
    """
    The first instance of a study is new, and makes rows of its study and series.
    """
    one = arrival()

    assert {one.instance.id: Finding.NEW} == rows.receive(one)
    (study,), (found,) = all_of(rows.ledger, studies), all_of(rows.ledger, series)
    assert ("1.2.1", "P1", "") == (study["study_instance_uid"], study["patient_id"], study["patient_name"])
    assert ("CT", "CT1", "TALARIA", "10.0.0.1") == tuple(
        found[name] for name in ("modality", "calling_ae", "called_ae", "address")
    )


def test_series_counts_its_instances(rows: Rows) -> None:
    """
    A series counts instances and bytes over all batches, and remembers its first and last arrival.
    """
    rows.receive(arrival("1"), arrival("2"))
    began = rows.clock.now()
    rows.clock.move(timedelta(seconds=7))
    rows.receive(arrival("3"))
    (found,) = all_of(rows.ledger, series)

    assert (3, 300) == (found["instances"], found["size_bytes"])
    assert (began, rows.clock.now()) == (found["first_received"], found["last_received"])


def test_batch_of_several_studies(rows: Rows) -> None:
    """
    A batch may hold instances of several series and studies, mixed.
    """
    rows.receive(*[arrival(str(n), series=str(n % 3), study=str(n % 2)) for n in range(12)])

    assert [2] * 6 == [row["instances"] for row in all_of(rows.ledger, series)]
    assert 2 == len(all_of(rows.ledger, studies))


def test_same_batch_twice_is_known(rows: Rows) -> None:
    """
    A batch recorded again, as after a kill before shelving, changes nothing.
    """
    batch = series_of(3)
    rows.receive(*batch)
    before = [all_of(rows.ledger, table) for table in (studies, series, instances, events)]

    assert {a.instance.id: Finding.KNOWN for a in batch} == rows.receive(*batch)
    assert before == [all_of(rows.ledger, table) for table in (studies, series, instances, events)]


def test_repeat_is_counted_and_nothing_else(rows: Rows) -> None:
    """
    An identical copy is counted; the series is not woken, and its quiet time goes on.
    """
    rows.receive(arrival("1"))
    before = all_of(rows.ledger, series)
    rows.clock.move(timedelta(seconds=30))
    again = arrival("1")

    assert {again.instance.id: Finding.REPEAT} == rows.receive(again)
    assert before == all_of(rows.ledger, series)
    assert [1] == [row["repeats"] for row in all_of(rows.ledger, instances)]
    assert ["instance.repeat"] == kinds(rows.ledger)


def test_repeat_inside_a_batch(rows: Rows) -> None:
    """
    Of twins in one batch the first is new and the others are repeats of it.
    """
    batch = [arrival("1"), arrival("1"), arrival("1")]

    assert [Finding.NEW, Finding.REPEAT, Finding.REPEAT] == list(rows.receive(*batch).values())
    assert [(batch[0].instance.id, 2)] == [(row["id"], row["repeats"]) for row in all_of(rows.ledger, instances)]


def test_conflict_keeps_both_and_uses_the_newest(rows: Rows) -> None:
    """
    Another content under the same SOP Instance UID is kept beside the first, which is not used any more.
    """
    old, new = arrival("1"), arrival("1", content="b")
    rows.receive(old)

    assert {new.instance.id: Finding.CONFLICT} == rows.receive(new)
    assert [(old.instance.id, new.instance.id), (new.instance.id, None)] == [
        (row["id"], row["superseded_by"]) for row in all_of(rows.ledger, instances)
    ]
    assert (1, 200) == tuple(all_of(rows.ledger, series)[0][name] for name in ("instances", "size_bytes"))
    assert ["instance.conflict"] == kinds(rows.ledger)


def test_conflicts_inside_a_batch(rows: Rows) -> None:
    """
    Of three contents in one batch the last is used, each older one is replaced by the next, and one is counted.
    """
    batch = [arrival("1", content=content) for content in "abc"]
    first, second, third = (a.instance.id for a in batch)

    assert [Finding.NEW, Finding.CONFLICT, Finding.CONFLICT] == list(rows.receive(*batch).values())
    assert {first: second, second: third, third: None} == {
        row["id"]: row["superseded_by"] for row in all_of(rows.ledger, instances)
    }
    assert 1 == all_of(rows.ledger, series)[0]["instances"]


def test_same_uid_in_another_series_is_a_conflict_that_replaces_nothing(rows: Rows) -> None:
    """
    A SOP Instance UID used in two series is told, and both stay in use.
    """
    one, other = arrival("1"), arrival("1", series="2", content="b")
    other = type(other)(
        instance=type(other.instance)(
            **{**vars(other.instance), "sop_instance_uid": one.instance.sop_instance_uid}
        ),
        origin=other.origin, association="", tags=other.tags,
    )  # fmt: skip
    rows.receive(one)

    assert [Finding.CONFLICT] == list(rows.receive(other).values())
    assert [None, None] == [row["superseded_by"] for row in all_of(rows.ledger, instances)]
    assert [1, 1] == [row["instances"] for row in all_of(rows.ledger, series)]


def test_late_instance_brings_the_router_back_early(rows: Rows) -> None:
    """
    An instance that comes while the series waits for a slow rule has the router look after the shortest quiet time.
    """
    rows.receive(arrival("1"))
    (found,) = all_of(rows.ledger, series)
    rows.cases.postpone_series(found["id"], rows.clock.now() + timedelta(hours=1))
    rows.receive(arrival("2"))

    assert rows.clock.now() + QUIET == rows.cases.next_due()


def test_further_instances_do_not_put_the_look_off(rows: Rows) -> None:
    """
    The moment at which the router looks at a growing series stays where the first instance set it.
    """
    rows.receive(arrival("1"))
    due = rows.cases.next_due()
    rows.clock.move(timedelta(seconds=30))
    rows.receive(arrival("2"))

    assert due == rows.cases.next_due()


def test_only_the_study_that_grew_is_touched(rows: Rows) -> None:
    """
    A repeat in a batch does not make its study the one heard of last.
    """
    rows.receive(arrival("1", study="1"))
    began = rows.clock.now()
    rows.clock.move(timedelta(seconds=5))
    rows.receive(arrival("1", study="1"), arrival("1", study="2"))

    assert [began, rows.clock.now()] == [row["last_received"] for row in all_of(rows.ledger, studies)]


def test_no_words_of_the_patient_in_events(rows: Rows) -> None:
    """
    What is told of repeats and conflicts names no patient.
    """
    rows.receive(arrival("1"), arrival("1"), arrival("1", content="b"))

    assert not any("P1" in row["detail"] for row in all_of(rows.ledger, events))


def test_two_receivers_at_once(rows: Rows) -> None:
    """
    Two receivers that write the same and other instances of the same studies at once lose and double nothing.
    """
    batches = [
        [arrival(str(n), series=str(n % 2), study=str(n % 3)) for n in range(24)],
        [arrival(str(n), series=str(n % 2), study=str(n % 3)) for n in reversed(range(12, 36))],
    ]
    found: list[dict[str, Finding]] = []
    gate = threading.Barrier(2)

    def record(number: int) -> None:
        gate.wait(10)
        found.extend(rows.receive(*batches[number][start : start + 4]) for start in range(0, 24, 4))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    said = [finding for part in found for finding in part.values()]

    assert (36, 12) == (said.count(Finding.NEW), said.count(Finding.REPEAT))
    assert 36 == sum(row["instances"] for row in all_of(rows.ledger, series))
    assert 12 == sum(row["repeats"] for row in all_of(rows.ledger, instances))
    assert (3, 6) == (len(all_of(rows.ledger, studies)), len(all_of(rows.ledger, series)))


def test_study_sent_again_is_told_once_for_a_series(rows: Rows) -> None:
    """
    Of a batch of repeats there is one event for each series, with their count; each instance has its own count.
    """
    first = [arrival(str(n), series=str(s)) for s in (1, 2) for n in range(20)]
    rows.receive(*first)
    again = [arrival(str(n), series=str(s)) for s in (1, 2) for n in range(20)]
    now = rows.clock.move(timedelta(seconds=5))
    rows.receive(*again, arrival("0"))
    told = [json.loads(row["detail"])["count"] for row in all_of(rows.ledger, events)]

    assert (["instance.repeat"] * 2, [21, 20]) == (kinds(rows.ledger), told)
    assert [2, *[1] * 39] == [row["repeats"] for row in all_of(rows.ledger, instances)]
    assert {now} == {row["repeated"] for row in all_of(rows.ledger, instances)}


def test_what_was_received_is_counted_for_ever(rows: Rows) -> None:
    """
    Instances are counted by who sent them, conflicts too and repeats apart; recording a batch again counts nothing.
    """
    batch = [arrival("1"), arrival("2"), arrival("2", content="b"), arrival("1")]
    rows.receive(*batch)
    rows.receive(*batch[:3])

    assert {"CT1": 3} == rows.listing.instances_received()
    assert [(3, 300, 1)] == [
        (row["instances"], row["size_bytes"], row["repeats"]) for row in all_of(rows.ledger, received)
    ]

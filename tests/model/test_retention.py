"""What may be deleted, in which order, and on which clock's word."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.retention import Candidate, Retention, clock_is_trusted, expired, to_make_room

NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)
STATES = ("discarded", "done", "failed", "held", "cancelled", "active", "pending", "deferred", "")

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.integers(0, 1000),
        state=st.sampled_from(STATES),
        ended=st.timedeltas(timedelta(days=-3), timedelta(days=30)).map(lambda age: NOW - age),
        size_bytes=st.integers(0, 1000),
    ),
    max_size=30,
)


def case(number: int, state: str, *, days: float, size: int = 10) -> Candidate:
    """A case that ended that many days ago."""
    return Candidate(id=number, state=state, ended=NOW - timedelta(days=days), size_bytes=size)


def test_expired_oldest_first() -> None:
    """
    What was kept for its time goes, the oldest first; what is failed or held stays.
    """
    cases = [
        case(1, "done", days=4),
        case(2, "discarded", days=5),
        case(3, "done", days=2),
        case(4, "failed", days=500),
        case(5, "held", days=500),
        case(6, "active", days=500),
    ]
    gone = expired(cases, retention=Retention(), now=NOW, is_clock_trusted=True)

    assert [2, 1] == [candidate.id for candidate in gone]


def test_failed_goes_where_retention_says_so() -> None:
    """
    A retention for failed cases holds for cancelled ones, too.
    """
    retention = Retention.model_validate({"failed": "30d"})
    gone = expired(
        [case(1, "failed", days=31), case(2, "cancelled", days=31), case(3, "failed", days=29)],
        retention=retention,
        now=NOW,
        is_clock_trusted=True,
    )

    assert [1, 2] == [candidate.id for candidate in gone]


@given(CANDIDATES)
def test_expired_was_kept_for_its_time(cases: list[Candidate]) -> None:
    """
    Nothing goes before its time, and nothing that a retention does not name.
    """
    retention = Retention()
    for candidate in expired(cases, retention=retention, now=NOW, is_clock_trusted=True):
        kept = retention.of(candidate.state)

        assert kept is not None
        assert candidate.ended + kept <= NOW


@given(CANDIDATES, st.integers(-10, 5000))
def test_room_is_made_with_as_little_as_needed(cases: list[Candidate], needed: int) -> None:
    """
    For room only done and discarded cases go, oldest first, and without the last of them it would not be enough.
    """
    gone = to_make_room(cases, needed_bytes=needed, retention=Retention(), is_clock_trusted=True)

    assert {candidate.state for candidate in gone} <= {"done", "discarded"}
    assert sorted(gone, key=lambda candidate: (candidate.ended, candidate.id)) == list(gone)
    assert not gone or sum(candidate.size_bytes for candidate in gone[:-1]) < needed


def test_room_is_not_made_of_what_is_kept_for_ever() -> None:
    """
    A site that keeps delivered cases for ever keeps them on a full disk, too.
    """
    retention = Retention.model_validate({"done": "never"})
    gone = to_make_room(
        [case(1, "done", days=90), case(2, "discarded", days=1)],
        needed_bytes=1,
        retention=retention,
        is_clock_trusted=True,
    )

    assert [2] == [candidate.id for candidate in gone]


@given(CANDIDATES, st.integers(0, 5000))
def test_nothing_goes_on_the_word_of_a_clock_that_jumped(cases: list[Candidate], needed: int) -> None:
    """
    While the clock is not trusted nothing is deleted, whatever it says and however full the disk is.
    """
    assert () == expired(cases, retention=Retention(), now=NOW, is_clock_trusted=False)
    assert () == to_make_room(cases, needed_bytes=needed, retention=Retention(), is_clock_trusted=False)


@pytest.mark.parametrize(
    ("wall", "monotonic", "last_event", "expected"),
    [
        (timedelta(minutes=1), timedelta(minutes=1), NOW, True),
        (timedelta(minutes=61), timedelta(minutes=1), NOW, True),
        (timedelta(minutes=62), timedelta(minutes=1), NOW, False),
        (timedelta(days=1), timedelta(minutes=1), NOW, False),
        (timedelta(days=-1), timedelta(minutes=1), NOW, False),
        (timedelta(days=3650), timedelta(minutes=1), None, False),
        (timedelta(minutes=1), timedelta(minutes=1), None, True),
        (timedelta(minutes=1), timedelta(minutes=1), NOW + timedelta(seconds=1), True),
        (timedelta(minutes=1), timedelta(minutes=1), NOW + timedelta(minutes=2), False),
        (timedelta(days=30), timedelta(days=30), NOW, True),
    ],
)
def test_clock_is_trusted(wall: timedelta, monotonic: timedelta, last_event: datetime | None, expected: bool) -> None:
    """
    A jump of more than an hour, either way, or a clock behind what was written down is not trusted.
    """
    assert expected is clock_is_trusted(wall=wall, monotonic=monotonic, now=NOW, last_event=last_event)

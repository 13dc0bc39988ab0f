"""Where a job may go from where it stands, and how long it waits."""

from collections import deque
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.errors import Refused
from talaria.model.job import HANDICAP, TRANSITIONS, Event, Patience, Priority, State, after, deferral, turn

#: One row a state, one column an event, in the order of `Event`; a dot where the event cannot happen.
#: claim finish defer fail break expire yield retry hold release cancel restart
TABLE = {
    State.PENDING: "active . . . . . . pending held . cancelled .",
    State.ACTIVE: ". done deferred failed held pending pending . held . cancelled .",
    State.DEFERRED: "active . . . . . . pending held . cancelled .",
    State.HELD: ". . . . . . . pending . pending cancelled pending",
    State.DONE: ". . . . . . . . . . . pending",
    State.FAILED: ". . . . . . . pending . . . pending",
    State.CANCELLED: ". . . . . . . pending . . . pending",
}
PAIRS = [(state, event, TABLE[state].split()[number]) for state in State for number, event in enumerate(Event)]
SPANS = st.timedeltas(timedelta(0), timedelta(days=400))


def test_table_has_every_pair() -> None:
    """
    The table of this test tells of every event in every state.
    """
    assert {state: len(Event) for state in State} == {state: len(row.split()) for state, row in TABLE.items()}


@pytest.mark.parametrize(("state", "event", "then"), PAIRS)
def test_every_pair_of_state_and_event(state: State, event: Event, then: str) -> None:
    """
    Each event leads where the table says, or is refused.
    """
    if then == ".":
        with pytest.raises(Refused):
            after(state, event)
    else:
        assert State(then) is after(state, event)


def test_refusal_names_what_is_possible() -> None:
    """
    Who asks for what cannot be is told what can.
    """
    with pytest.raises(Refused) as told:
        after(State.DONE, Event.RETRY)

    assert "a job that is done cannot retry; possible now: restart" == str(told.value)


def test_no_state_is_a_trap() -> None:
    """
    From every state there is a way to every other.
    """
    for start in State:
        reached = {start}
        while more := {then for (state, _), then in TRANSITIONS.items() if state in reached} - reached:
            reached |= more

        assert set(State) == reached


def test_only_a_worker_ends_an_attempt() -> None:
    """
    What a worker reports can happen to an active job alone.
    """
    reports = {Event.FINISH, Event.DEFER, Event.FAIL, Event.BREAK, Event.EXPIRE, Event.YIELD}

    assert {State.ACTIVE} == {state for state, event in TRANSITIONS if event in reports}


def test_final_states() -> None:
    """
    Done, failed and cancelled jobs move by a person's word alone.
    """
    assert {State.DONE, State.FAILED, State.CANCELLED} == {state for state in State if state.is_final}


@given(SPANS, SPANS, SPANS, st.floats(0, 1, exclude_max=True))
def test_deferral_keeps_its_bounds(age: timedelta, one: timedelta, other: timedelta, jitter: float) -> None:
    """
    A wait is never longer than the most, and never shorter than three quarters of the first.
    """
    patience = Patience(first=min(one, other), most=max(one, other))
    wait = deferral(age, patience=patience, jitter=jitter)

    assert patience.first * 0.75 - timedelta(microseconds=1) <= wait <= patience.most


@given(SPANS, SPANS, st.floats(0, 1, exclude_max=True))
def test_deferral_grows_with_age(age: timedelta, more: timedelta, jitter: float) -> None:
    """
    An older job never waits less.
    """
    waits = [deferral(a, patience=Patience(), jitter=jitter) for a in (age, age + more)]

    assert sorted(waits) == waits


def test_gaps_double() -> None:
    """
    A job that waits as long as it has already waited is tried at 5, 10, 20 ... s, then every 10 min.
    """
    age, tried = timedelta(0), []
    while len(tried) < 10:
        age += deferral(age, patience=Patience(), jitter=0.0)
        tried.append(age / timedelta(seconds=1))

    assert [5, 10, 20, 40, 80, 160, 320, 640, 1240, 1840] == tried


# -- whose turn it is --

NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("first", "waited", "then"),
    [
        (Priority.URGENT, timedelta(0), Priority.NORMAL),
        (Priority.URGENT, timedelta(minutes=-59), Priority.NORMAL),
        (Priority.NORMAL, timedelta(minutes=61), Priority.URGENT),
        (Priority.NORMAL, -3.9 * HOUR, Priority.OFFPEAK),
        (Priority.OFFPEAK, 4.1 * HOUR, Priority.NORMAL),
        (Priority.OFFPEAK, 5.1 * HOUR, Priority.URGENT),
    ],
)
def test_the_urgent_go_first_unless_others_waited_for_hours(first: Priority, waited: timedelta, then: Priority) -> None:
    """
    A normal job goes before an urgent one when it has waited an hour longer, an off-peak one when it is five.
    """
    assert turn(first, NOON - waited) < turn(then, NOON)


@pytest.mark.parametrize("priority", [Priority.NORMAL, Priority.OFFPEAK])
def test_nothing_starves(priority: Priority) -> None:
    """
    While urgent jobs come twice as fast as they can be done, for two days, another is done when those are at hand that
    were made by its handicap later: so long it waits behind them and no longer.
    """
    urgent: deque[datetime] = deque()
    others: deque[datetime] = deque()
    lags = []
    for now in (NOON + timedelta(minutes=number) for number in range(48 * 60)):
        urgent += [now, now]
        if now.minute % 30 == 0:
            others.append(now)
        if turn(priority, others[0]) < turn(Priority.URGENT, urgent[0]):
            lags.append(urgent[0] - others.popleft())
            others = others or deque([now])
        else:
            urgent.popleft()

    assert len(lags) > 30
    assert all(HANDICAP[priority] <= lag <= HANDICAP[priority] + timedelta(minutes=2) for lag in lags)


@given(st.sampled_from(Priority), st.sampled_from(Priority), SPANS)
def test_what_is_made_after_its_turn_goes_after_it(one: Priority, other: Priority, later: timedelta) -> None:
    """
    However urgent the others are and however many: what is made later than a job's turn goes after it.
    """
    if later > HANDICAP[one]:
        assert turn(one, NOON) < turn(other, NOON + later)

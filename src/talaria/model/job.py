"""A job: its states, the only ways between them, and how long it waits before it is tried again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from types import MappingProxyType

from talaria.model.errors import Refused


class Kind(StrEnum):
    """What a job does."""

    PROCESS = "process"
    DISPATCH = "dispatch"
    NOTIFY = "notify"


class Priority(IntEnum):
    """Which job goes first; lower is sooner."""

    URGENT = 0
    NORMAL = 1
    OFFPEAK = 2


#: How much longer a job must have waited to go before an urgent one: an hour if it is normal, five if off-peak.
HANDICAP: Mapping[Priority, timedelta] = MappingProxyType(
    {Priority.URGENT: timedelta(0), Priority.NORMAL: timedelta(hours=1), Priority.OFFPEAK: timedelta(hours=5)}
)


def turn(priority: Priority, due: datetime) -> datetime:
    """
    When a job's turn is: of those that may be done now, the one whose turn is earliest goes first.

    The urgent go before the normal and those before the off-peak, but nothing starves: what is made later than
    a job's turn goes after it, however urgent.

    >>> noon = datetime(2026, 3, 29, 12)
    >>> turn(Priority.NORMAL, noon) < turn(Priority.URGENT, noon + timedelta(minutes=61))
    True
    """
    return due + HANDICAP[priority]


class State(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    ACTIVE = "active"
    DEFERRED = "deferred"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the job by itself."""
        return self in {State.DONE, State.FAILED, State.CANCELLED}


class Event(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    """A worker takes it; its attempt counts from here, so that poison cannot loop."""
    FINISH = "finish"
    """The worker did what was asked."""
    DEFER = "defer"
    """It may pass by itself: again later."""
    FAIL = "fail"
    """It will not pass without a person."""
    BREAK = "break"
    """A bug: held with its traceback."""
    EXPIRE = "expire"
    """Its worker was heard of no more; it is due again."""
    YIELD = "yield"
    """Its worker was told to stop in good order; it is due again, and the attempt does not count."""
    RETRY = "retry"
    """A person wants it tried now; what was done stays done."""
    HOLD = "hold"
    """A person stops it."""
    RELEASE = "release"
    """A person lets it go on."""
    CANCEL = "cancel"
    """A person ends it."""
    RESTART = "restart"
    """A person wants all of it done again."""


def _table() -> Mapping[tuple[State, Event], State]:
    table: dict[tuple[State, Event], State] = {
        (State.ACTIVE, Event.FINISH): State.DONE,
        (State.ACTIVE, Event.DEFER): State.DEFERRED,
        (State.ACTIVE, Event.FAIL): State.FAILED,
        (State.ACTIVE, Event.BREAK): State.HELD,
        (State.ACTIVE, Event.EXPIRE): State.PENDING,
        (State.ACTIVE, Event.YIELD): State.PENDING,
        (State.ACTIVE, Event.HOLD): State.HELD,
        (State.ACTIVE, Event.CANCEL): State.CANCELLED,
        (State.HELD, Event.RELEASE): State.PENDING,
        (State.HELD, Event.CANCEL): State.CANCELLED,
        (State.HELD, Event.RETRY): State.PENDING,
    }
    for waiting in (State.PENDING, State.DEFERRED):
        table[waiting, Event.CLAIM] = State.ACTIVE
        table[waiting, Event.HOLD] = State.HELD
        table[waiting, Event.CANCEL] = State.CANCELLED
        table[waiting, Event.RETRY] = State.PENDING
    for ended in (State.FAILED, State.CANCELLED):
        table[ended, Event.RETRY] = State.PENDING
    for ended in (State.DONE, State.FAILED, State.CANCELLED, State.HELD):
        table[ended, Event.RESTART] = State.PENDING
    return MappingProxyType(table)


#: The only ways from one state to another.
TRANSITIONS: Mapping[tuple[State, Event], State] = _table()


def after(state: State, event: Event) -> State:
    """
    The state that *event* leads to.

    Raises:
        Refused: The event cannot happen in this state; says which events can.

    >>> after(State.PENDING, Event.CLAIM)
    <State.ACTIVE: 'active'>
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        possible = ", ".join(sorted(e for s, e in TRANSITIONS if s is state)) or "nothing"
        raise Refused(f"a job that is {state} cannot {event}; possible now: {possible}") from None


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Which instances of one series a job is about: those of portions *first* to *last*, both included."""

    series_id: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to be done, as the ledger has it."""

    id: int
    kind: Kind
    state: State
    study_id: int
    study_instance_uid: str
    series_instance_uid: str | None  #: None when the case is a study
    case_id: int
    rule: str
    revision: int  #: of the rulebook it was made under
    target: str | None  #: of a dispatch job
    parent: int | None  #: the process job whose results it delivers
    priority: Priority
    supplement: int  #: 0 for the first closing of the case, then counted
    attempt: int  #: counted when claimed
    reason: str  #: why it is where it is, in words; empty when all is well
    created: datetime
    due: datetime  #: not before this; UTC
    updated: datetime
    owner: str | None  #: the worker that holds the lease


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a job that may pass is tried again; the `retry` of a target."""

    first: timedelta = timedelta(seconds=5)
    """Before the second attempt."""
    most: timedelta = timedelta(minutes=10)
    """No gap is longer."""
    budget: timedelta = timedelta(hours=72)
    """Older than this it fails with the last reason."""


def deferral(age: timedelta, *, patience: Patience, jitter: float) -> timedelta:
    """
    How long a job waits before it is tried again.

    It waits as long as it has already waited, so the gaps double and no count is kept.

    Args:
        age: Since the job was first due; never negative.
        patience: The bounds of the answer.
        jitter: In [0, 1); spreads the answer over its last quarter, so that a herd does not return at once.

    Returns:
        A wait in [0.75 *first*, *most*].

    Source: Postfix `qmgr_active.c`, per-message backoff.

    >>> deferral(timedelta(seconds=60), patience=Patience(), jitter=0.0)
    datetime.timedelta(seconds=60)
    """
    wait = min(max(age, patience.first), patience.most)
    return wait * (1 - 0.25 * jitter)

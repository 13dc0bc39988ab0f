"""The ledger's clock: the server's, between its answers and without them."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from talaria.model.errors import LedgerAway
from talaria.store.clock import DatabaseClock
from talaria.store.ledger import Ledger
from talaria.testing import MovedClock

SECOND = timedelta(seconds=1)


class Uptime:
    """A clock that never jumps, moved by the test."""

    def __init__(self) -> None:
        self.length = timedelta(days=3)

    def __call__(self) -> timedelta:
        return self.length

    def move(self, length: timedelta) -> None:
        self.length += length


@pytest.fixture
def uptime() -> Uptime:
    return Uptime()


@pytest.fixture
def told(ledger: Ledger, clock: MovedClock, uptime: Uptime) -> DatabaseClock:
    """The ledger's clock on a host whose own is wrong."""
    return DatabaseClock(ledger, uptime=uptime, wall=clock.now)


def until(clock: DatabaseClock, moment: datetime, *, within: timedelta = SECOND) -> None:
    """Wait for the clock's own thread to have asked."""
    end = time.monotonic() + 20
    while abs(clock() - moment) > within:
        assert time.monotonic() < end, "the server was not asked"
        threading.Event().wait(0.005)


def test_clock_of_sqlite_is_the_wall_clock(sqlite_template: object, clock: MovedClock) -> None:
    """
    Where there is no server there is one host, and its clock.
    """
    told = DatabaseClock(Ledger.open(f"sqlite:///{sqlite_template}"), wall=clock.now)
    clock.move(SECOND)

    assert clock.now() == told()


@pytest.mark.server
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
class TestOfAServer:
    """On PostgreSQL."""

    def test_clock_is_the_servers(self, told: DatabaseClock) -> None:
        """
        A host whose own clock is wrong goes by the server's.
        """
        told.ask()

        assert abs(told() - datetime.now(UTC)) < 20 * SECOND
        assert told().utcoffset() == timedelta(0)

    def test_clock_goes_on_between_answers(self, told: DatabaseClock, uptime: Uptime) -> None:
        """
        Between two answers it goes on by a clock that never jumps, however the host's own is set.
        """
        told.ask()
        before = told()
        uptime.move(9 * SECOND)

        assert before + 9 * SECOND == told()

    def test_clock_asks_again(self, told: DatabaseClock, uptime: Uptime) -> None:
        """
        After ten seconds the server is asked again, by another thread than the caller's.
        """
        told.ask()
        uptime.move(timedelta(hours=1))

        assert told() - datetime.now(UTC) > timedelta(minutes=59)
        until(told, datetime.now(UTC), within=20 * SECOND)

    def test_clock_begins_by_the_hosts(self, told: DatabaseClock, ledger: Ledger, clock: MovedClock) -> None:
        """
        Before the first answer it is the host's own; the first call asks.
        """
        assert clock.now() == told()
        until(told, datetime.now(UTC), within=20 * SECOND)

    def test_clock_goes_on_with_the_ledger_away(self, told: DatabaseClock, uptime: Uptime, ledger_url: str) -> None:
        """
        With the server gone it goes on from the last answer, and never waits for the next.
        """
        told.ask()
        before = told()
        told._ledger = Ledger.open("postgresql://nobody@127.0.0.1:1/none")
        uptime.move(timedelta(minutes=10))
        began = time.monotonic()

        assert before + timedelta(minutes=10) == told()
        assert time.monotonic() - began < 1
        with pytest.raises(LedgerAway):
            told.ask()
        assert before + timedelta(minutes=10) == told()

    def test_answer_is_of_the_middle_of_its_time(self, ledger: Ledger, clock: MovedClock) -> None:
        """
        An answer that took four seconds is taken for that of two seconds ago.
        """
        moment, lengths = datetime(2026, 3, 29, 12, tzinfo=UTC), iter([timedelta(0), 4 * SECOND, 4 * SECOND])
        ledger.server_time = lambda: moment  # type: ignore[method-assign]  # a server that takes its time
        told = DatabaseClock(ledger, uptime=lambda: next(lengths, 4 * SECOND), wall=clock.now)
        told.ask()

        assert moment + 2 * SECOND == told()

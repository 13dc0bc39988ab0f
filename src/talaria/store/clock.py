"""The ledger's clock: one for all hosts that work on it."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from talaria.model.errors import LedgerAway
from talaria.store.ledger import Ledger

#: The server's clock is asked again after so long.
_EVERY = timedelta(seconds=10)


def _since_boot() -> timedelta:
    """A clock that never jumps, the sleep of the machine counted."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


def _wall() -> datetime:
    return datetime.now(UTC)


class DatabaseClock:
    """
    Tells the time by the database server's clock, so that leases and due times mean the same on every host.

    The server is asked now and then; between, a clock that never jumps goes on from what it said. With the ledger
    away it goes on from the last answer, and before the first by the wall clock. On SQLite it is the wall clock.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        uptime: Callable[[], timedelta] = _since_boot,
        wall: Callable[[], datetime] = _wall,
    ) -> None:
        self._ledger, self._uptime, self._wall = ledger, uptime, wall
        self._booted: datetime | None = None  # by the server's clock
        self._asked: timedelta | None = None
        self._asking = threading.Lock()

    def __call__(self) -> datetime:
        """Now, aware, UTC; never waits for the server, which is asked by a thread of its own."""
        if not self._ledger.has_server:
            return self._wall()
        now = self._wall() if self._booted is None else self._booted + self._uptime()
        if self._is_old() and self._asking.acquire(blocking=False):
            threading.Thread(target=self._ask_and_release, name="clock", daemon=True).start()
        return now

    def ask(self) -> None:
        """
        Ask the server now.

        Its answer is taken for that of the middle of the time it took, so it is off by half of that at most.

        Raises:
            LedgerAway: It cannot be asked; the clock goes on.
        """
        began = self._uptime()
        self._asked = began  # whatever comes of it: not again before its time
        found = self._ledger.server_time()
        if found is not None:
            ended = self._uptime()
            self._booted, self._asked = found - (began + ended) / 2, ended

    def _is_old(self) -> bool:
        return self._asked is None or self._uptime() - self._asked >= _EVERY

    def _ask_and_release(self) -> None:
        try:
            self.ask()
        except LedgerAway:
            return  # whoever works on the ledger says so
        finally:
            self._asking.release()

"""What only PostgreSQL needs: connections that give up a silent server, and news between processes."""

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen
from psycopg.waiting import READY_NONE
from sqlalchemy import Dialect, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from talaria.model.errors import LedgerAway
from talaria.store.ledger import Bounds

T = TypeVar("T")

#: What everybody who works on the ledger listens at.
_CHANNEL = "talaria"
#: A connection that rested for longer is asked whether it still works before it is used.
_RESTED_SECONDS = 2.0
#: Where the network swallows everything, the kernel gives a connection up after about 30 s (tcp(7)).
_TCP = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class BoundedConnection(psycopg.Connection[Any]):
    """
    A connection on which nothing takes for ever.

    The kernel of a server that is stopped or hangs acknowledges all that it is sent, so neither keepalives nor
    `tcp_user_timeout` notice, and the server enforces none of its own limits. What takes longer than `patience` closes
    the connection, with an `OperationalError`.
    """

    patience = timedelta(seconds=30)
    """For one answer."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Consume a generator that operates on the connection."""
        try:
            return super().wait(_bounded(gen, self.patience), *args, **kwargs)
        except _SilentServer:
            self.close()
            raise

    def ping(self, patience: timedelta) -> None:
        """Ask for an answer outside of any transaction, and wait for no longer than *patience*."""
        usual, self.patience = self.patience, patience
        try:
            self.autocommit = True
            self.execute("SELECT 1")
            self.autocommit = False
        finally:
            self.patience = usual


class _SilentServer(psycopg.OperationalError):
    """It did not answer in time."""


def _bounded(gen: PQGen[T], patience: timedelta) -> PQGen[T]:
    """The same, ended when it has been waiting too long; psycopg resumes it with `READY_NONE` ten times a second."""
    deadline = time.monotonic() + patience.total_seconds()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready == READY_NONE and time.monotonic() > deadline:
                raise _SilentServer(f"the server did not answer within {patience.total_seconds():g} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        found: T = end.value
        return found


def create_engine(address: URL, bounds: Bounds) -> Engine:
    """An engine whose connections are bounded, and few enough for a server's usual hundred."""
    engine = sa.create_engine(
        address,
        pool_size=bounds.connections,
        max_overflow=0,  # what overflows is closed when it is given back: one more is made for each that waits
        pool_timeout=bounds.turn.total_seconds(),
        hide_parameters=True,  # they name patients, and errors are logged
    )

    def connect(_dialect: Dialect, _record: ConnectionPoolEntry, _args: list[Any], parameters: dict[str, Any]) -> Any:
        connection = BoundedConnection.connect(**_parameters(parameters, bounds))
        connection.patience = bounds.answer
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkin", _note_rest)
    event.listen(engine, "checkout", _Ping(bounds.connect))
    return engine


def _parameters(given: dict[str, Any], bounds: Bounds) -> dict[str, Any]:
    """How to connect; what the address says itself goes before."""
    limits = {
        "statement_timeout": bounds.statement,
        "lock_timeout": bounds.lock,
        "idle_in_transaction_session_timeout": bounds.idle,
    }
    options = " ".join(f"-c {name}={int(limit.total_seconds() * 1000)}" for name, limit in limits.items())
    ours = {"connect_timeout": max(1, round(bounds.connect.total_seconds())), "application_name": "talaria", **_TCP}
    return {**ours, **given, "options": f"{options} {given.get('options', '')}".strip()}


def _note_rest(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


class _Ping:
    """Asks a connection that has rested whether it works: all that rest may have gone with the server."""

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience

    def __call__(self, connection: Any, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        now = time.monotonic()
        if now - record.info.get("rests_since", now) < _RESTED_SECONDS:
            return
        assert isinstance(connection, BoundedConnection)
        try:
            connection.ping(self._patience)
        except psycopg.Error as error:
            raise sa.exc.InvalidatePoolError from error


# -- news --


def tell(connection: Any, topics: Iterable[str]) -> None:
    """
    Say that there is work; outside of the transaction that made it, which is committed.

    A commit that notifies takes a lock that there is once in a server (`PreCommit_Notify` in async.c), and holds it
    while it syncs; alone, it has nothing to sync. What is not heard is found by who looks every two seconds.
    """
    assert isinstance(connection, BoundedConnection)
    try:
        connection.autocommit = True
        connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, " ".join(sorted(topics))))
        connection.autocommit = False
    except psycopg.Error:
        connection.close()  # whoever takes it from the pool next sees that it is closed, and gets another


class Ear:
    """Hears what other connections tell."""

    def __init__(self, connection: Any, *, name: str) -> None:
        assert isinstance(connection, BoundedConnection)
        self._connection, self._name = connection, name
        connection.autocommit = True
        self._do(lambda: connection.execute(f"LISTEN {_CHANNEL}"))

    def __call__(self, length: timedelta) -> bool:
        """Wait up to so long; whether there are news."""
        found: list[object] = []
        self._do(lambda: found.extend(self._connection.notifies(timeout=length.total_seconds(), stop_after=1)))
        if found:
            self._do(lambda: found.extend(self._connection.notifies(timeout=0)))
        return bool(found)

    def _do(self, act: Any) -> None:
        try:
            act()
        except psycopg.Error as error:
            raise LedgerAway(f"ledger {self._name}: cannot be listened to: {_first_line(error)}") from error


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]

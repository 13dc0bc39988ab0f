"""The cable between a ledger and its database, which a test can pull."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, event

from talaria.store.ledger import Ledger


def gone() -> sa.exc.OperationalError:
    """What a driver says of a server that is not there."""
    return sa.exc.OperationalError("", {}, ConnectionError("the cable is pulled"))


class Cable:
    """
    While it is pulled, every connection fails as if the server were gone.

    With `loses_answers`, what is committed then is committed, but nobody hears of it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.is_pulled = self.loses_answers = False
        event.listen(ledger.engine.pool, "checkout", self._check)
        event.listen(ledger.engine, "commit", self._lose)

    def pull(self) -> None:
        """Take the ledger away."""
        self.is_pulled = True

    def plug(self) -> None:
        """Bring it back."""
        self.is_pulled = self.loses_answers = False

    def _check(self, *_: Any) -> None:
        if self.is_pulled:
            raise gone()

    def _lose(self, connection: Connection) -> None:
        if self.loses_answers and connection.get_execution_options().get("writer"):
            raw = connection.connection.dbapi_connection
            assert raw is not None
            if connection.dialect.name == "sqlite":
                raw.cursor().execute("COMMIT")
            else:
                raw.commit()
            self.is_pulled = True
            raise gone()

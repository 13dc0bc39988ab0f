"""Small facts that a service keeps from one start to the next."""

import sqlalchemy as sa

from talaria.store.ledger import Ledger
from talaria.store.schema import facts


class Notes:
    """Named texts."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, name: str) -> str | None:
        """What was noted last; None if nothing was."""
        with self._ledger.reading() as connection:
            return connection.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar()

    def set(self, name: str, value: str) -> None:
        """Note it; what was noted before is gone."""
        with self._ledger.writing("notes.set") as connection:
            changed = connection.execute(sa.update(facts).where(facts.c.name == name).values(value=value)).rowcount
            if not changed:
                connection.execute(facts.insert().values(name=name, value=value))

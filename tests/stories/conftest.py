"""A home for a story, of which nothing runs on after it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import APART, Serving


@pytest.fixture
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    """
    A home that is set up; nothing runs yet.

    One `talaria serve` on SQLite, or, as `serving.ON_BOTH` asks, each service a command of its own on PostgreSQL.
    """
    if getattr(request, "param", "sqlite") == "postgresql":
        found = Serving(tmp_path, url=request.getfixturevalue("ledger_at_server"), apart=APART)
    else:
        found = Serving(tmp_path)
    found.run("init")
    yield found
    found.abandon()


@pytest.fixture
def ledger_at_server(request: pytest.FixtureRequest) -> str:
    """A database without any table on a PostgreSQL server."""
    return str(request.getfixturevalue("empty_databases")())

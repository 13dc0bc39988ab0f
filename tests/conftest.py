"""What tests of several rooms stand on: a ledger on each database, made anew for every test."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from clusters import cluster
from rows import make_ledger
from talaria.store.ledger import Ledger
from talaria.testing import MovedClock


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new ledger as one file, to be copied."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    make_ledger(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A cluster of our own on the loopback, gone at the end; the address of its servers, without a database."""
    with cluster() as made:
        make_database(made.address, "template", source="template0")
        make_ledger(f"{made.address}/template")
        yield made.address


def make_database(address: str, name: str, *, source: str) -> None:
    """A database of that name, a copy of *source*."""
    engine = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:", 1) + "/postgres")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
    engine.dispose()


@pytest.fixture
def empty_databases(postgresql: str) -> Callable[[], str]:
    """Makes databases of our own without any table; the address of each."""

    def make() -> str:
        name = f"e{secrets.token_hex(8)}"
        make_database(postgresql, name, source="template0")
        return f"{postgresql}/{name}"

    return make


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger is, with all tables and nothing in them."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "ledger.db")
        return f"sqlite:///{tmp_path}/ledger.db"
    address, name = request.getfixturevalue("postgresql"), f"t{secrets.token_hex(8)}"
    make_database(address, name, source="template")
    return f"{address}/{name}"


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """That ledger, opened."""
    opened = Ledger.open(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> MovedClock:
    """A clock that stands until the test moves it."""
    return MovedClock()

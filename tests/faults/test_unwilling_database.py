"""PostgreSQL is there, and will not: read-only, no connection left, another password; told, and lived through."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from real import Real
from stage import Pool

from clusters import Cluster, cluster
from serving import Serving, until
from sink import Sink

pytestmark = pytest.mark.server

#: What is done to the server, what takes it back, and what the log has to say of it, the advice included.
TROUBLES = {
    "read-only": (
        "ALTER ROLE talaria SET default_transaction_read_only = on",
        "ALTER ROLE talaria RESET default_transaction_read_only",
        ("read-only transaction", "is it a standby, or set to read-only?"),
    ),
    "connection limit": (
        "ALTER ROLE talaria CONNECTION LIMIT 0",
        "ALTER ROLE talaria CONNECTION LIMIT -1",
        ("too many connections for role", "run fewer processes"),
    ),
    "password changed": (
        "ALTER ROLE talaria PASSWORD 'another'",
        "ALTER ROLE talaria PASSWORD 'sesame-17'",
        ("password authentication failed", "check user and password in database_url"),
    ),
}


@dataclass
class Server:
    """A PostgreSQL that asks Talaria for a password."""

    cluster: Cluster

    def do(self, *statements: str) -> None:
        """As its superuser."""
        engine = sa.create_engine(f"{self.cluster.address.replace('postgresql:', 'postgresql+psycopg:', 1)}/postgres")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def do_to_all(self, statement: str) -> None:
        """The same, and end every session, so that the next ones meet it."""
        self.do(statement, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'talaria'")


@pytest.fixture
def server() -> Iterator[Server]:
    """With a role and a database of Talaria's own."""
    with cluster() as made:
        hba = made.folder / "cluster" / "pg_hba.conf"
        hba.write_text("host all postgres 127.0.0.1/32 trust\nhost all talaria 127.0.0.1/32 scram-sha-256\n")
        found = Server(made)
        found.do(
            "CREATE ROLE talaria LOGIN PASSWORD 'sesame-17'", "CREATE DATABASE talaria OWNER talaria",
            "SELECT pg_reload_conf()",
        )  # fmt: skip
        yield found


@pytest.fixture
def real(tmp_path: Path, server: Server, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A home on it, served."""
    address = f"postgresql://talaria:sesame-17@127.0.0.1:{server.cluster.port}/talaria"
    found = Real(Serving(tmp_path, url=address), far_end, pool)
    found.prepare()
    found.serving.start()
    yield found
    found.serving.abandon()


def reasons(real: Real, *, after: int) -> list[str]:
    """What the log gives as reasons from there on."""
    lines = (json.loads(line) for line in real.serving.log.read_text()[after:].splitlines() if line.endswith("}"))
    return [str(line.get("reason", "")) for line in lines]


def test_database_that_is_not_willing(real: Real, server: Server) -> None:
    """
    Images are taken meanwhile, the log says why nothing else goes on and what to do, and it goes on by itself when it
    is over: nothing lost, nothing twice, no service dead (case 33).
    """
    real.send()
    real.settle()
    for trouble, over, said in TROUBLES.values():
        after = real.serving.log.stat().st_size
        server.do_to_all(trouble)
        assert [] == real.send()
        assert real.scu().echo() <= 2.0
        until(
            lambda: any(all(word in reason for word in said) for reason in reasons(real, after=after)),  # noqa: B023 - at once
            seconds=30, what=f"the reason: {said}",
        )  # fmt: skip
        server.do_to_all(over)
        real.settle(seconds=60)
    log = real.serving.log.read_text()
    assert 0 == real.serving.stop()
    assert "service died" not in log
    assert "sesame" not in log
    real.check().expect(duplicates=0, case="a database that is not willing")

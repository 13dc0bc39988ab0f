"""A ledger of an earlier version is taken to this one whole or not at all, and its work is worked off."""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from earlier import LEFT, put_0001
from orchestra import Orchestra, files_of
from talaria.failpoint import InjectedFault, arm
from talaria.model.errors import ConfigError, LedgerAway, WrongSchema
from talaria.model.job import Event
from talaria.store import schema
from talaria.store.backup import Backup, write_backup
from talaria.store.ledger import Ledger
from talaria.store.migrations.steps import known, tables_at
from talaria.store.restoring import refuse_running, restore
from talaria.store.workers import Process, Workers


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


@pytest.fixture
def earlier(ledger_url: str, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of schema 0001, in the middle of its work."""
    put_0001(ledger_url, tmp_path)
    opened = Ledger.open(ledger_url)
    yield opened
    opened.close()


def work_off(folder: Path, url: str) -> Orchestra:
    """Let today's services do what an earlier version began, a person acting where one is asked."""
    world = Orchestra(folder / "home", url=url)
    world.clock.move(LEFT - world.clock.now() + timedelta(minutes=1))
    world.rulebooks.refresh()
    world.indexer.adopt_strays()
    world.jobs.expire(now=world.clock.now(), is_dead=lambda _: True)
    world.wait(timedelta(minutes=15))
    for number, event in ((4, Event.RETRY), (5, Event.RELEASE)):
        world.jobs.act(number, event, actor="eve", now=world.clock.now())
    world.wait(timedelta(minutes=2))
    return world


def test_work_of_an_earlier_version_is_worked_off(earlier: Ledger, ledger_url: str, tmp_path: Path) -> None:
    """
    Pending, active, deferred, held and failed jobs, a collecting case, a series nobody was asked about and files not
    yet written down: every image gets to each of its targets once, and each job is done once.
    """
    before = Counter(uid for name in ("share", "other") for uid in files_of(tmp_path / name))
    earlier.migrate(now=LEFT)
    world = work_off(tmp_path, ledger_url)
    with world.ledger.reading() as connection:
        states = Counter(connection.execute(sa.select(schema.jobs.c.state)).scalars())
        asked = connection.execute(
            sa.select(schema.jobs.c.kind, schema.jobs.c.series_id, schema.jobs.c.target, schema.jobs.c.parent)
        ).all()
        waits = connection.execute(
            sa.select(sa.func.count()).select_from(schema.instances).where(schema.instances.c.portion.is_(None))
        ).scalar_one()
        sent = connection.execute(sa.select(schema.outcomes.c.times_sent)).scalars().all()

    assert Counter() == before
    assert {"done": 12 + 2 + 2 + 2 + 1} == dict(states)
    assert len(set(asked)) == len(asked)
    assert 0 == waits
    assert 1 == max(sent)
    assert (2 * 4 + 2 * 2 + 2 * 2, 2 * 4 + 2 * 2 + 2) == tuple(
        len(files_of(tmp_path / name)) for name in ("share", "other")
    )
    world.ledger.close()


def rows_of_all(ledger: Ledger, step: str) -> list[list[str]]:
    """Every row of every table of a step."""
    with ledger.engine.connect() as connection:
        return [
            sorted(str(tuple(row)) for row in connection.execute(sa.select(sa.text("*")).select_from(sa.text(t.name))))
            for t in tables_at(step)
        ]


@pytest.mark.parametrize("place", ["migration.step.taken", "migration.steps.taken", "ledger.migrate.written"])
def test_interrupted_migration_leaves_the_old(earlier: Ledger, place: str) -> None:
    """
    Whatever interrupts it, the ledger is as it was, to the last row; begun again it goes through.
    """
    before, identity = rows_of_all(earlier, "0001"), earlier.identity()
    arm(f"{place}=raise")
    with pytest.raises(InjectedFault):
        earlier.migrate(now=LEFT)
    arm("")

    assert "0001" == earlier.step()
    assert before == rows_of_all(earlier, "0001")
    with earlier.engine.connect() as connection:
        assert not sa.inspect(connection).has_table("results")
    earlier.migrate(now=LEFT)
    earlier.verify_schema()
    assert identity == earlier.identity()


def test_two_migrations_at_once(earlier: Ledger, ledger_url: str) -> None:
    """
    Of two that migrate at the same time one waits for the other, and both find the ledger migrated.
    """
    wrong: list[BaseException] = []

    def go() -> None:
        ledger = Ledger.open(ledger_url)
        try:
            ledger.migrate(now=LEFT)
            ledger.verify_schema()
        except (ConfigError, LedgerAway, sa.exc.SQLAlchemyError) as error:
            wrong.append(error)
        finally:
            ledger.close()

    threads = [threading.Thread(target=go) for _ in range(3)]
    arm("migration.step.taken=sleep:0.3")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [] == wrong
    earlier.verify_schema()


def test_earlier_schema_is_refused_with_what_to_do(earlier: Ledger) -> None:
    """
    Nothing works on a ledger of an earlier version, and the command that takes it up is named.
    """
    with pytest.raises(WrongSchema) as told:
        earlier.verify_schema()

    assert (
        f"ledger {earlier.name}: schema 0001 is older than this Talaria's {schema.REVISION}; "
        "stop the services and run `talaria db migrate`" == str(told.value)
    )


def test_backup_of_an_earlier_version_is_restored(
    earlier: Ledger, ledger: Ledger, ledger_url: str, tmp_path: Path
) -> None:
    """
    A backup made before an upgrade is put in at its own schema and taken up to this one.
    """
    identity = earlier.identity()
    manifest = write_backup(earlier, tmp_path / "b", now=LEFT)
    with Backup.open(tmp_path / "b") as backup:
        found = restore(earlier, backup, spool="S", now=LEFT + timedelta(hours=1), actor="eve")
    again = Ledger.open(ledger_url)
    again.verify_schema()

    assert "0001" == manifest.step
    assert identity == again.identity()
    assert 10 == found.studies
    assert 6 == found.deliveries_held
    again.close()


def test_every_step_is_known() -> None:
    """
    The steps follow each other by their names, and the last one is the code's.
    """
    assert schema.REVISION == known()[-1]
    assert {table.name for table in tables_at(schema.REVISION)} == set(schema.metadata.tables)


def test_services_at_work_keep_upkeep_away(ledger: Ledger) -> None:
    """
    While services were heard of lately, on whatever host, the ledger is not touched; dead ones of this host and those
    of long ago keep nobody away.
    """
    here, workers = Process.own(), Workers(ledger)
    dead = Process(host=here.host, pid=here.pid, started="1")
    away = Process(host="elsewhere", pid=7, started="1")
    workers.seen(dead, "router", started=LEFT, now=LEFT)
    refuse_running(ledger, now=LEFT, host=here.host)
    workers.seen(away, "dispatcher", started=LEFT, now=LEFT)
    with pytest.raises(ConfigError, match=r"services work on it: dispatcher on elsewhere \(process 7\); stop them"):
        refuse_running(ledger, now=LEFT, host=here.host)
    refuse_running(ledger, now=LEFT + timedelta(minutes=1), host=here.host)
    workers.seen(here, "cleaner", started=LEFT, now=LEFT + timedelta(minutes=1))
    with pytest.raises(ConfigError, match="cleaner on"):
        refuse_running(ledger, now=LEFT + timedelta(minutes=1), host=here.host)

"""A backup is one state of a ledger, the same from either database, and says when it is not whole."""

import json
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from rows import Rows, make_ledger, series_of
from talaria.failpoint import InjectedFault, arm
from talaria.model.errors import ConfigError, NoRoom
from talaria.store import schema
from talaria.store.backup import Backup, Manifest, write_backup
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.store.restoring import Restored, restore
from talaria.testing import MovedClock

NOW = MovedClock().now()
LATER = NOW + timedelta(hours=8)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def in_work(ledger: Ledger) -> Rows:
    """A ledger with something of everything: routed, half delivered, of odd names, with bytes and truths."""
    rows = Rows(ledger, MovedClock())
    rows.jobs_of(3)
    rows.receive(*series_of(study="900"))
    with ledger.writing("test") as connection:
        write_event(connection, "odd", now=NOW, subject=Subject(), text='Žofie "\\ \n 合成 😀')
    return rows


def contents(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with ledger.reading() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for name, table in schema.metadata.tables.items()
        }


@pytest.mark.parametrize("other", ["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def test_what_is_restored_is_what_was_backed_up(
    ledger: Ledger, tmp_path: Path, other: str, request: pytest.FixtureRequest, fresh: Callable[[str], str]
) -> None:
    """
    From either database into either, every row is the same, to the microsecond and the byte.
    """
    in_work(ledger)
    write_backup(ledger, tmp_path / "b", now=NOW)
    into = Ledger.open(fresh(other))
    with Backup.open(tmp_path / "b") as backup, into.writing("test") as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
        from talaria.store.backup import load

        load(connection, backup)

    assert contents(ledger) == contents(into)
    assert into.identity() == ledger.identity()
    into.close()


@pytest.fixture
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The address of a new ledger beside the first."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            make_ledger(f"sqlite:///{tmp_path}/other.db")
            return f"sqlite:///{tmp_path}/other.db"
        url = str(request.getfixturevalue("empty_databases")())
        make_ledger(url)
        return url

    return make


def test_numbers_go_on_where_they_were(ledger: Ledger, tmp_path: Path, fresh: Callable[[str], str]) -> None:
    """
    After a restoration no number is given out twice, not even that of a row that was removed since.
    """
    in_work(ledger)
    with ledger.writing("test") as connection:
        last = connection.execute(sa.select(sa.func.max(schema.events.c.id))).scalar_one()
        connection.execute(sa.delete(schema.events).where(schema.events.c.id > last - 2))
    write_backup(ledger, tmp_path / "b", now=NOW)
    put_back(ledger, tmp_path / "b")
    rows = Rows(ledger, MovedClock())
    rows.receive(*series_of(study="901"))
    with ledger.reading() as connection:
        ids = list(connection.execute(sa.select(schema.events.c.id).order_by(schema.events.c.id)).scalars())

    assert [] == [number for number in ids if number in (last - 1, last)]
    assert [4, 5] == rows.jobs_of(1)


def put_back(ledger: Ledger, path: Path) -> Restored:
    """Restore a backup in place."""
    with Backup.open(path) as backup:
        return restore(ledger, backup, spool="SPOOL", now=LATER, actor="eve")


def test_backup_is_of_one_state_while_others_write(ledger: Ledger, tmp_path: Path) -> None:
    """
    Of what is written while a backup is made all of a transaction is in it or nothing.
    """
    rows = in_work(ledger)
    stopping = threading.Event()

    def go_on() -> None:
        number = 1000
        while not stopping.is_set():
            number += 1
            rows.receive(*series_of(5, study=str(number)))

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        manifests = [write_backup(ledger, tmp_path / f"b{number}", now=NOW) for number in range(5)]
    finally:
        stopping.set()
        writer.join()

    assert sorted(m.rows for m in manifests) == [m.rows for m in manifests]
    for number, manifest in enumerate(manifests):
        with Backup.open(tmp_path / f"b{number}") as backup:
            series_id, counted = columns_of(manifest, "instances", "series_id"), columns_of(manifest, "series", "id")
            there = [row[series_id] for row in backup.rows("instances")]
            known = {row[counted] for row in backup.rows("series")}
        assert set(there) <= known
        assert {5, 3} >= {there.count(key) for key in set(there)}


def columns_of(manifest: Manifest, table: str, name: str) -> int:
    """Where a column is in a row."""
    return manifest.tables[table].columns.index(name)


def test_backup_is_private_and_replaces_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """
    It names patients: its owner and group alone may read it. A file that is there stays.
    """
    write_backup(ledger, tmp_path / "b", now=NOW)
    before = (tmp_path / "b").read_bytes()
    with pytest.raises(ConfigError, match="is there already; a backup replaces nothing"):
        write_backup(ledger, tmp_path / "b", now=NOW)

    assert 0o640 == stat.S_IMODE((tmp_path / "b").stat().st_mode)
    assert before == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("place", ["backup.rows.written", "backup.file.synced"])
def test_backup_that_cannot_be_written_leaves_nothing(ledger: Ledger, tmp_path: Path, place: str) -> None:
    """
    Where the disk is full nothing of a backup is left, and it is told.
    """
    in_work(ledger)
    (tmp_path / "to").mkdir()
    arm(f"{place}=enospc")
    with pytest.raises(NoRoom, match="cannot be written: No space left on device; nothing of it is left"):
        write_backup(ledger, tmp_path / "to" / "b", now=NOW)

    assert [] == list((tmp_path / "to").iterdir())


def spoil(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a file."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a member of an archive, which stays whole as such."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in members.items():
            archive.writestr(entry, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is no backup, or was cut off"),
        (lambda path: path.write_bytes(b""), "is no backup, or was cut off"),
        (lambda path: rewrite(path, "tables/jobs.jsonl", lambda rows: rows.replace(b"pending", b"done   ")), "'jobs'"),
        (lambda path: rewrite(path, "tables/jobs.jsonl", lambda rows: b"\n".join(rows.split(b"\n")[1:])), "'jobs'"),
        (lambda path: rewrite(path, "tables/jobs.jsonl", lambda rows: rows + b"{}\n"), "'jobs'"),
        (
            lambda path: rewrite(path, "manifest.json", lambda text: text.replace(b'"format": 1', b'"format": 2')),
            "newer",
        ),
        (lambda path: rewrite(path, "manifest.json", lambda text: b"[]"), "its manifest cannot be read"),
        (
            lambda path: rewrite(path, "manifest.json", lambda text: text.replace(b'"step": "0', b'"step": "9')),
            "schema 9",
        ),
        (lambda path: rewrite(path, "manifest.json", lambda text: text.replace(b'"accession', b'"x')), "its tables"),
    ],
)
def test_backup_that_is_not_whole_changes_nothing(
    ledger: Ledger, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    """
    A backup that was cut off, changed, or is of a newer version is refused, and the ledger is as it was.
    """
    in_work(ledger)
    write_backup(ledger, tmp_path / "b", now=NOW)
    change(tmp_path / "b")
    before = contents(ledger)
    with pytest.raises(ConfigError, match=said):
        put_back(ledger, tmp_path / "b")

    assert before == contents(ledger)


def test_flipped_bits_are_found(ledger: Ledger, tmp_path: Path) -> None:
    """
    Wherever a bit of a backup flips, it is refused, or it is a bit that nothing is read from.
    """
    in_work(ledger)
    write_backup(ledger, tmp_path / "b", now=NOW)
    good = (tmp_path / "b").read_bytes()
    expected = manifest_and_rows(tmp_path / "b")
    for place in range(0, len(good), max(1, len(good) // 150)):
        spoiled = bytearray(good)
        spoiled[place] ^= 0x10
        (tmp_path / "b").write_bytes(spoiled)
        try:
            found = manifest_and_rows(tmp_path / "b")
        except ConfigError:
            continue

        assert expected == found, f"byte {place}"


def manifest_and_rows(path: Path) -> list[object]:
    """All that is in a backup."""
    with Backup.open(path) as backup:
        return [json.loads(backup.manifest.model_dump_json()), [list(backup.rows(t)) for t in backup.manifest.tables]]


@pytest.mark.parametrize(
    "place", ["restore.table.loaded=raise@5", "restore.replace.written=raise", "restore.fill.written=raise"]
)
def test_restoration_is_whole_or_nothing(ledger: Ledger, tmp_path: Path, place: str) -> None:
    """
    Interrupted anywhere, the ledger is as it was, and the same restoration goes through afterwards.
    """
    rows = in_work(ledger)
    write_backup(ledger, tmp_path / "b", now=NOW)
    rows.receive(*series_of(study="902"))
    before = contents(ledger)
    arm(place)
    is_met = "restore.table" in place or ("replace" in place) == (ledger.engine.dialect.name == "postgresql")
    if is_met:
        with pytest.raises(InjectedFault):
            put_back(ledger, tmp_path / "b")

        assert before == contents(ledger)
    arm("")
    put_back(ledger, tmp_path / "b")

    assert before != contents(ledger)


def test_what_was_there_is_set_aside(ledger: Ledger, tmp_path: Path) -> None:
    """
    The ledger that a backup takes the place of is kept, whole, under a name with the date.
    """
    rows = in_work(ledger)
    write_backup(ledger, tmp_path / "b", now=NOW)
    rows.receive(*series_of(study="903"))
    before = contents(ledger)
    aside = put_back(ledger, tmp_path / "b").set_aside
    if ledger.engine.dialect.name == "sqlite":
        found = contents(Ledger.open(f"sqlite:///{aside}"))
    else:
        name = aside.split()[1]
        found = contents(Ledger.open(f"{ledger.engine.url.render_as_string()}?options=-c%20search_path%3D{name}"))

    assert before == found


def rows_of(connection: Connection, *columns: sa.Column[str]) -> list[tuple[str, ...]]:
    """Some columns of a table, in the order of its rows."""
    return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(columns[0].table.c.id))]


def test_what_may_have_happened_since_is_held(ledger: Ledger, tmp_path: Path) -> None:
    """
    Deliveries that were not over and series on their way to the rules wait for a person; what was over stays so.
    """
    rows = in_work(ledger)
    from talaria.model.job import Event

    rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())
    rows.claim()
    write_backup(ledger, tmp_path / "b", now=NOW)
    found = put_back(ledger, tmp_path / "b")
    made = NOW.strftime("%Y-%m-%d %H:%M:%S UTC")
    reason = f"restored from the backup of {made}: may have been delivered since; release it to send what is missing"
    with ledger.reading() as connection:
        states = rows_of(connection, schema.jobs.c.state, schema.jobs.c.reason)
        held = list(connection.execute(sa.select(schema.series.c.held).order_by(schema.series.c.id)).scalars())
        told = list(
            connection.execute(sa.select(schema.events.c.kind).order_by(schema.events.c.id.desc()).limit(4)).scalars()
        )

    assert [("done", ""), ("held", reason), ("held", reason)] == states
    assert ["", "", ""] == held[:3]
    assert held[3].startswith(f"restored from the backup of {made}: may have been routed since")
    assert (2, 1) == (found.deliveries_held, found.series_held)
    assert ["ledger.restored", "series.held", "job.hold", "job.hold"] == told

"""Upkeep by its commands: backups while work goes on, restorations, upgrades, damage, and who may work on what."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from earlier import put_0001
from serving import TALARIA, Serving, until
from talaria.store.ledger import Ledger
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server

RULES = """
settings: {{series_quiet: 1s}}
targets:
  share: {{kind: folder, path: {folder}/share}}
rules:
  all: {{when: "True", send: [share]}}
"""
SERVICES = ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web")


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Makes the address of a ledger that has no tables yet; on SQLite in a folder's home."""

    def make(folder: Path) -> str:
        if request.param == "sqlite":
            return f"sqlite:///{folder}/home/ledger.db"
        databases: Callable[[], str] = request.getfixturevalue("empty_databases")
        return databases()

    return make


@pytest.fixture
def home(tmp_path: Path, new_url: Callable[[Path], str]) -> Iterator[Serving]:
    """A home that is set up, on each database; nothing runs yet."""
    found = Serving(tmp_path, url=new_url(tmp_path), TALARIA_TEST_BUILD="1")
    found.run("init")
    yield found
    found.abandon()


def change(url: str, statement: str) -> None:
    """Change something of a ledger by hand."""
    ledger = Ledger.open(url)
    with ledger.writing("test") as connection:
        connection.execute(sa.text(statement))
    ledger.close()


def delivered(folder: Path) -> int:
    """How many instances are at the target."""
    return len(list((folder / "share").rglob("*.dcm")))


def test_backup_while_running_and_restoration(home: Serving, tmp_path: Path) -> None:
    """
    A backup of a site at work is restored; what was delivered since is not sent again, and waits until it is released.
    """
    (tmp_path / "share").mkdir()
    home.apply(RULES.format(folder=tmp_path))
    home.start()
    home.send(*synthetic_ct(tmp_path / "1", seed=1, slices=3, side=16).paths)
    until(lambda: 3 == delivered(tmp_path), seconds=30, what="the first delivery")
    said = home.run("db", "backup", str(tmp_path / "b"))
    refused = home.run("db", "restore", str(tmp_path / "b"), "--replace", code=1)
    home.send(*synthetic_ct(tmp_path / "2", seed=2, slices=3, side=16).paths)
    until(lambda: 6 == delivered(tmp_path), seconds=30, what="the second delivery")
    home.kill()
    needs_word = home.run("db", "restore", str(tmp_path / "b"), code=1)
    until(lambda: not said_alive(home), seconds=20, what="the end of all services")
    told = home.run("db", "restore", str(tmp_path / "b"), "--replace", "--json")
    restored = json.loads(told[told.index("{") : told.rindex("}") + 1])

    assert "not in it: the images: files of the spool; the secret key file; talaria.toml" in said
    assert f"home {tmp_path}/home: services run on it" in refused
    assert "has studies; with --replace it is set aside" in needs_word
    assert 1 == restored["restored"]["studies"]
    assert 3 == restored["compared"]["taken_in"]
    for path in (tmp_path / "share").iterdir():
        shutil.rmtree(path)
    home.start()
    until(lambda: "held" in home.run("studies", "list"), seconds=30, what="the held series")
    assert 0 == delivered(tmp_path)
    assert "series released: 1" in home.run("db", "release", "--series")
    until(lambda: 3 == delivered(tmp_path), seconds=30, what="what was released")


def said_alive(home: Serving) -> bool:
    """Whether upkeep is refused because of services that were heard of lately."""
    done = subprocess.run(
        [*TALARIA, "db", "compare"], env=home.environment, capture_output=True, text=True, check=False
    )
    return "services work on it" in done.stderr


@pytest.mark.slow
def test_other_schema_is_refused_by_every_service(home: Serving) -> None:
    """
    Each service alone, all together and each command refuse a ledger of another version, and say what to do.
    """
    change(home.url, "UPDATE alembic_version SET version_num = '0000'")
    for command in (["serve", "router"], ["studies", "list"], ["init"]):
        assert "run `talaria db migrate`" in home.run(*command, code=1)
    change(home.url, "UPDATE alembic_version SET version_num = '9999'")
    for command in (["serve"], *(["serve", name] for name in SERVICES), ["jobs", "list"], ["check"], ["db", "migrate"]):
        assert "made by a newer Talaria" in home.run(*command, code=1)


@pytest.mark.parametrize("service", ["router", "receiver"])
def test_service_that_meets_another_schema_stops(home: Serving, service: str) -> None:
    """
    A service whose ledger is taken to another version while it runs ends with the reason, and is not started again.
    """
    home.start(service)
    until(lambda: service in json.dumps(workers(home.url)), seconds=30, what="the service")
    change(home.url, "UPDATE alembic_version SET version_num = '9999'")

    assert 1 == home.processes[0].wait(40)
    assert "was made by a newer Talaria than this one" in home.log.read_text()
    assert f"service '{service}' cannot work with this ledger" in home.log.read_text()


def workers(url: str) -> list[str]:
    """Services that said that they live."""
    ledger = Ledger.open(url)
    with ledger.reading() as connection:
        found = list(connection.execute(sa.text("SELECT service FROM workers")).scalars())
    ledger.close()
    return found


def test_home_of_another_ledger_is_refused(home: Serving, tmp_path: Path, new_url: Callable[[Path], str]) -> None:
    """
    Each service alone refuses a ledger that the home does not belong to, and one that has no tables.
    """
    (tmp_path / "other").mkdir()
    other = Serving(tmp_path / "other", url=new_url(tmp_path / "other"))
    other.run("init")
    home.environment["TALARIA_DATABASE_URL"] = other.url
    for service in ("receiver", "router", "web"):
        assert "belongs to ledger" in home.run("serve", service, code=1)
    (tmp_path / "empty" / "home").mkdir(parents=True)
    home.environment["TALARIA_DATABASE_URL"] = new_url(tmp_path / "empty")
    for command in (["serve", "router"], ["serve"]):
        assert "has no tables yet" in home.run(*command, code=1)
    assert "is it the right database" in home.run("init", code=1)


def test_other_spool_is_refused(home: Serving, tmp_path: Path) -> None:
    """
    A spool that is another's, or an empty folder in place of one, is refused by each service and never made again.
    """
    spool, aside = tmp_path / "home" / "spool", tmp_path / "aside"
    (tmp_path / "other").mkdir()
    other = Serving(tmp_path / "other")
    other.run("init")
    spool.rename(aside)
    shutil.copytree(tmp_path / "other" / "home" / "spool", spool)
    for service in ("receiver", "dispatcher"):
        assert "is the right disk mounted?" in home.run("serve", service, code=1)
    shutil.rmtree(spool)
    spool.mkdir()
    for service in ("receiver", "dispatcher"):
        assert "is its disk mounted?" in home.run("serve", service, code=1)

    assert "is its disk mounted?" in home.run("init", code=1)
    assert [] == list(spool.iterdir())
    spool.rmdir()
    aside.rename(spool)
    home.run("check")


def test_second_serve_is_refused(home: Serving) -> None:
    """
    Two full `serve` on one home are refused on either database; single services beside it are normal.
    """
    home.start()

    assert "another `talaria serve` runs on it" in home.run("serve", code=1)
    home.launch("router")
    until(lambda: 2 == len(home.pids("router")), seconds=30, what="the second router")


def test_receiver_alone_sees_another_home_at_its_port(home: Serving, tmp_path: Path) -> None:
    """
    A receiver started alone does not share the port of another home; one of the same home does.
    """
    home.start("receiver")
    (tmp_path / "other").mkdir()
    other = Serving(tmp_path / "other", TALARIA_DICOM_PORT=str(home.dicom_port))
    other.run("init")
    said = other.run("serve", "receiver", code=1)

    assert f"dicom_port {home.dicom_port}: another program or another home listens there: process {home.pid}" in said
    home.launch("receiver")
    until(lambda: 2 == len(home.pids("receiver")), seconds=30, what="the second receiver")
    home.run("echo", "--to", f"127.0.0.1:{home.dicom_port}", "--called", "TALARIA")


@pytest.fixture
def earlier(home: Serving, tmp_path: Path) -> Serving:
    """A home that schema 0001 left in the middle of its work."""
    shutil.rmtree(tmp_path / "home" / "spool")
    put_0001(home.url, tmp_path)
    for name in ("identity", "spool-identity"):
        (tmp_path / "home" / name).unlink()
    ledger = Ledger.open(home.url)
    (tmp_path / "home" / "identity").write_text(ledger.identity() + "\n")
    ledger.close()
    return home


def test_upgrade_by_its_command(earlier: Serving, tmp_path: Path) -> None:
    """
    A backup is made, the ledger taken to this version, and today's services work off what there was.
    """
    assert "run `talaria db migrate`" in earlier.run("init", code=1)
    said = earlier.run("db", "migrate")
    (backup,) = (tmp_path / "home").glob("before-schema-*.backup")

    assert "schema 0001 is now 0002" in said
    assert str(backup) in said
    assert "schema 0001" in earlier.run("db", "show", str(backup))
    assert "nothing was done" in earlier.run("db", "migrate")
    earlier.start()
    until(lambda: 6 <= delivered(tmp_path), seconds=60, what="deliveries of before")


@pytest.mark.parametrize(
    "place", ["migration.step.taken", "migration.steps.taken", "ledger.migrate.written", "ledger.migrate.committed"]
)
def test_killed_migration(earlier: Serving, place: str) -> None:
    """
    Killed in the middle, the ledger is the old one or the new one, and the same command ends it.
    """
    earlier.environment["TALARIA_FAILPOINTS"] = f"{place}=kill"
    earlier.run("db", "migrate", "--no-backup", code=-9)
    del earlier.environment["TALARIA_FAILPOINTS"]
    said = earlier.run("db", "migrate", "--no-backup")

    assert ("nothing was done" in said) == place.endswith("committed")
    earlier.run("check")


def test_killed_restoration(home: Serving, tmp_path: Path) -> None:
    """
    Killed anywhere, there is a ledger, the one before or the one restored; no service runs until it was compared.
    """
    home.run("db", "backup", str(tmp_path / "b"))
    places = ("restore.table.loaded", "restore.file.linked", "restore.file.swapped", "compare.done.written")
    for place in places if home.url.startswith("sqlite") else (places[0], "restore.replace.written", places[3]):
        home.environment["TALARIA_FAILPOINTS"] = f"{place}=kill"
        home.run("db", "restore", str(tmp_path / "b"), code=-9)
        del home.environment["TALARIA_FAILPOINTS"]
        if place in ("restore.file.swapped", "compare.done.written"):
            assert "run `talaria db compare`" in home.run("serve", "router", code=1)
            home.run("db", "compare")
        home.run("check")
    home.run("db", "restore", str(tmp_path / "b"))
    home.run("check")


def test_two_migrations_at_once(earlier: Serving, tmp_path: Path) -> None:
    """
    Of two `db migrate` at once one does it; the other is told, or finds it done.
    """
    command = [*TALARIA, "db", "migrate", "--no-backup"]
    both = [
        subprocess.Popen(command, env=earlier.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = sorted((process.communicate(timeout=60)[0], process.returncode) for process in both)

    assert any("schema 0001 is now 0002" in text for text, _ in said)
    assert all(code == 0 or "another `talaria db` command does" in text for text, code in said)
    earlier.run("check")


@pytest.mark.parametrize("place", ["header", "page"])
def test_damaged_file_is_told_and_made_anew(tmp_path: Path, serving: Serving, place: str) -> None:
    """
    Every start says what is wrong and what to do; `db rebuild` keeps the damaged file and takes the images in again.
    """
    (tmp_path / "share").mkdir()
    serving.apply(RULES.format(folder=tmp_path))
    serving.start()
    serving.send(*synthetic_ct(tmp_path / "1", seed=1, slices=3, side=16).paths)
    until(lambda: 3 == delivered(tmp_path), seconds=30, what="the delivery")
    serving.stop()
    identity = (tmp_path / "home" / "identity").read_text()
    file = tmp_path / "home" / "ledger.db"
    refused = serving.run("db", "rebuild", code=1)
    data = bytearray(file.read_bytes())
    damaged = slice(0, 4096) if place == "header" else slice(8192, len(data))
    data[damaged] = os.urandom(len(data[damaged]))
    file.write_bytes(data)
    told = serving.run("studies", "list", code=1)

    assert "is whole and has studies; nothing need be rebuilt" in refused
    assert "its file is damaged" in told
    assert "`talaria db restore FILE --replace` with the last backup, or `talaria db rebuild` without one" in told
    serving.start("receiver")
    until(lambda: "its file is damaged" in serving.log.read_text(), seconds=20, what="the reason in the log")
    serving.send(*synthetic_ct(tmp_path / "2", seed=2, slices=3, side=16).paths)
    serving.kill()
    said = serving.run("db", "rebuild")
    (aside,) = (tmp_path / "home").glob("ledger.db.2*")

    assert f"the ledger before it is now {aside}" in said
    assert bytes(data) == aside.read_bytes()
    assert identity == (tmp_path / "home" / "identity").read_text()
    serving.run("init")
    serving.start()
    until(lambda: 6 == delivered(tmp_path), seconds=30, what="what arrived meanwhile")
    assert "held" in serving.run("studies", "list")
    assert "series released: 1" in serving.run("db", "release", "--series")
    until(lambda: 9 == delivered(tmp_path), seconds=30, what="what was released")

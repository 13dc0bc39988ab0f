"""After a restoration or a rebuild the files of the spool win, and nothing of it is routed unseen."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestra import Orchestra, data_sets, files_of
from talaria.failpoint import InjectedFault, arm
from talaria.model.errors import ConfigError
from talaria.model.header import TagList
from talaria.store import schema
from talaria.store.backup import Backup, write_backup
from talaria.store.ledger import Ledger
from talaria.store.reconciling import Compared, Comparison, refuse_uncompared
from talaria.store.restoring import Restored, make_anew, release_deliveries, restore, studies_held
from talaria.store.spool import is_of_result, new_ulid
from talaria.testing import MovedClock, SyntheticStudy, synthetic_ct

RULES = """
settings: {{series_quiet: 10s}}
targets:
  share: {{kind: folder, path: {folder}/share}}
modules:
  copy: {{builtin: pass}}
rules:
  made: {{when: "tags.SenderAET == 'CT2'", action: process, process: [copy], send: [share]}}
  all: {{when: "tags.SenderAET != 'CT2'", action: route, send: [share]}}
"""
QUIET = timedelta(seconds=10)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


class Site:
    """An orchestra whose ledger may be lost and come back."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        (folder / "share").mkdir()
        self.world = Orchestra(folder, url=url)
        self.world.apply(RULES.format(folder=folder))

    def receive(self, seed: int, *, sender: str = "CT1", slices: int = 3) -> SyntheticStudy:
        """A study arrives."""
        study = synthetic_ct(self.folder / f"{seed}", seed=seed, slices=slices, side=8)
        self.world.receive(study.paths, calling_ae=sender)
        return study

    def back_up(self) -> None:
        """Write a backup."""
        write_backup(self.world.ledger, self.folder / "backup", now=self.world.clock.now())

    def restore(self) -> Restored:
        """Put it back, without the comparison."""
        with Backup.open(self.folder / "backup") as backup:
            return restore(
                self.world.ledger, backup, spool=self.world.spool.name, now=self.world.clock.now(), actor="eve"
            )

    def lose_ledger(self) -> str:
        """Make an empty ledger in its place; where the one before it is."""
        return make_anew(
            self.world.ledger, identity=self.world.ledger.identity(), spool=self.world.spool.name,
            rulebook=self.world.rulebooks.kept(), now=self.world.clock.now(), actor="eve",
        )  # fmt: skip

    def compare(self) -> Compared:
        """Compare spool and ledger, and let an orchestra go on with what there is now."""
        clock = self.world.clock
        self.world.ledger.close()
        self.world = Orchestra(self.folder, url=self.url)
        self.world.clock.move(clock.now() - self.world.clock.now())
        self.world.rulebooks.refresh()
        wanted = TagList.of(self.world.rulebooks.running().recorded_names)
        return Comparison(
            self.world.ledger, self.world.spool, wanted=wanted, quiet=QUIET, reason="arrived after the backup of X; Y",
            now=clock.now(),
        ).run()  # fmt: skip

    def delivered(self) -> set[str]:
        """SOP Instance UIDs at the target."""
        return set(files_of(self.folder / "share"))

    def deliveries(self) -> int:
        """How many folders were delivered."""
        return len(list((self.folder / "share").rglob(".complete")))


@pytest.fixture
def site(tmp_path: Path, ledger_url: str) -> Iterator[Site]:
    """One on each database."""
    found = Site(tmp_path, ledger_url)
    yield found
    found.world.ledger.close()


def test_nothing_is_sent_again_by_itself(site: Site) -> None:
    """
    What was delivered after the backup is not delivered again after its restoration; what arrived after it waits for
    a person; released, all of it is at the target.
    """
    first, second = site.receive(1), site.receive(2)
    site.world.wait(QUIET * 2)
    third = site.receive(3)  # not yet routed
    site.back_up()
    site.world.wait(QUIET * 2)
    fourth = site.receive(4)
    site.world.wait(QUIET * 2)
    everything = {uid for study in (first, second, third, fourth) for uid in data_sets(study.paths)}

    assert everything == site.delivered()
    assert 4 == site.deliveries()
    restored = site.restore()
    compared = site.compare()
    site.world.wait(timedelta(minutes=5))

    assert (3, 0, 1) == (restored.studies, restored.deliveries_held, restored.series_held)
    assert (12, 3, 2, 0, 0) == (
        compared.files, compared.taken_in, compared.series_held, compared.lost, compared.elsewhere
    )  # fmt: skip
    assert 4 == site.deliveries()
    assert 2 == len(studies_held(site.world.ledger))


def test_deliveries_that_waited_are_held_until_released(site: Site) -> None:
    """
    A delivery that was not over when the backup was made waits; released it sends what is missing.
    """
    study = site.receive(1)
    site.world.clock.move(QUIET * 2)
    while site.world.router.step(site.world.clock.now()):
        pass
    site.back_up()
    site.restore()
    site.compare()
    site.world.wait(timedelta(minutes=5))

    assert set() == site.delivered()
    assert 1 == release_deliveries(site.world.ledger, now=site.world.clock.now(), actor="eve")
    assert 0 == release_deliveries(site.world.ledger, now=site.world.clock.now(), actor="eve")
    site.world.wait(timedelta(minutes=1))

    assert set(data_sets(study.paths)) == site.delivered()


def test_process_jobs_go_on(site: Site) -> None:
    """
    A process job that was in hand when the backup was made is done again, and its results are delivered.
    """
    study = site.receive(1, sender="CT2")
    site.world.clock.move(QUIET * 2)
    while site.world.router.step(site.world.clock.now()):
        pass
    site.back_up()
    site.world.wait(timedelta(minutes=1))
    for path in (site.folder / "share").iterdir():
        path.rename(site.folder / f"before-{path.name}")
    site.restore()
    compared = site.compare()
    site.world.wait(timedelta(minutes=1))

    assert 3 == compared.results
    assert 0 == compared.taken_in
    assert 3 == len(list((site.folder / "spool" / "odd").iterdir()))
    assert set(data_sets(study.paths)) == site.delivered()


def test_rows_without_files_say_so(site: Site) -> None:
    """
    What retention removed after the backup is marked as gone, with an event; a series that lost some keeps the rest.
    """
    site.receive(1)
    site.receive(2)
    site.world.wait(QUIET * 2)
    site.back_up()
    with site.world.ledger.reading() as connection:
        files = connection.execute(
            sa.select(schema.instances.c.id, schema.instances.c.series_id).order_by(schema.instances.c.id)
        ).all()
    gone = [row for row in files if row.series_id == files[0].series_id]
    gone.append(next(row for row in files if row not in gone))
    for row in gone:
        site.world.spool.drop(row.id)
    site.restore()
    compared = site.compare()
    with site.world.ledger.reading() as connection:
        dropped = set(
            connection.execute(
                sa.select(schema.instances.c.id).where(schema.instances.c.dropped.is_not(None))
            ).scalars()
        )
        left = connection.execute(sa.select(schema.series.c.instances, schema.series.c.dropped)).all()
        told = list(
            connection.execute(sa.select(schema.events.c.detail).where(schema.events.c.kind == "series.lost")).scalars()
        )

    assert (4, 0) == (compared.lost, compared.taken_in)
    assert {row.id for row in gone} == dropped
    assert {(0, False), (2, True)} == {(row.instances, row.dropped is None) for row in left}
    assert {'{"instances":3,"left":0}', '{"instances":1,"left":2}'} == set(told)


@pytest.mark.parametrize("place", ["compare.batch.recorded", "arrivals.record.committed", "compare.done.written"])
def test_interrupted_comparison_goes_on(site: Site, place: str) -> None:
    """
    Until the comparison has ended no service may run; begun again it ends as if it had not been interrupted.
    """
    site.receive(1)
    site.world.wait(QUIET * 2)
    site.back_up()
    site.receive(2)
    site.receive(3)
    site.restore()
    arm(f"{place}=raise")
    with pytest.raises(InjectedFault):
        site.compare()
    arm("")
    with pytest.raises(ConfigError, match="run `talaria db compare`"):
        refuse_uncompared(site.world.ledger, site.world.spool.name)
    site.compare()
    refuse_uncompared(site.world.ledger, site.world.spool.name)
    with site.world.ledger.reading() as connection:
        held = list(connection.execute(sa.select(schema.series.c.held).order_by(schema.series.c.id)).scalars())
        count = connection.execute(sa.select(sa.func.count()).select_from(schema.instances)).scalar_one()

    assert ["", "arrived after the backup of X; Y", "arrived after the backup of X; Y"] == held
    assert 9 == count


def test_ledger_is_made_anew_from_the_spool(site: Site) -> None:
    """
    Without any backup every image is taken in again, with who sent it, under the rulebook that ran, and waits.
    """
    site.receive(1, sender="CT7")
    site.receive(2)
    site.receive(3, sender="CT2")
    site.world.wait(QUIET * 3)
    identity, delivered = site.world.ledger.identity(), site.deliveries()
    (site.world.spool.root / "store" / "00" / f"{new_ulid(site.world.clock.now())[:-2]}00.dcm").write_bytes(b"x" * 300)
    site.lose_ledger()
    compared = site.compare()
    site.world.wait(timedelta(minutes=5))
    with site.world.ledger.reading() as connection:
        senders = set(connection.execute(sa.select(schema.series.c.calling_ae)).scalars())
        first = connection.execute(sa.select(sa.func.min(schema.instances.c.received))).scalar_one()

    assert (9, 3, 3, 1) == (compared.taken_in, compared.series_held, compared.results, compared.unreadable)
    assert {"CT7", "CT1", "CT2"} == senders
    assert identity == site.world.ledger.identity()
    assert delivered == site.deliveries()
    assert abs(first.timestamp() - os.stat(site.folder).st_mtime) < 600
    assert 1 == site.world.rulebooks.running().number


def test_newer_content_is_used_after_a_rebuild(site: Site) -> None:
    """
    Where two contents came under one SOP Instance UID, the one that came last is the one that is used.
    """
    from pydicom import dcmread

    study = site.receive(1, slices=1)
    changed = dcmread(study.paths[0])
    changed.PixelData = bytes(reversed(changed.PixelData))
    changed.save_as(site.folder / "second.dcm")
    site.world.clock.move(timedelta(seconds=1))
    site.world.receive([site.folder / "second.dcm"])
    with site.world.ledger.reading() as connection:
        query = sa.select(schema.instances.c.id).where(schema.instances.c.superseded_by.is_(None))
        before = connection.execute(query).scalar_one()
    site.lose_ledger()
    site.compare()
    with site.world.ledger.reading() as connection:
        assert before == connection.execute(query).scalar_one()


def test_results_are_told_from_what_was_received() -> None:
    """
    The name of a file says whether a module made it.
    """
    now = MovedClock().now()

    assert not any(is_of_result(new_ulid(now)) for _ in range(100_000))
    assert all(is_of_result(new_ulid(now, of_result=True)) for _ in range(100))
    assert 100 == len({new_ulid(now, of_result=True) for _ in range(100)})


def test_other_spools_are_not_looked_at(site: Site, tmp_path: Path) -> None:
    """
    Rows of a spool that is not here are left as they are, and counted.
    """
    site.receive(1)
    with site.world.ledger.writing("test") as connection:
        connection.execute(sa.update(schema.instances).values(spool="ANOTHER"))
        kept = connection.execute(sa.select(schema.instances.c.id)).scalars().all()
    for name in kept:
        site.world.spool.drop(name)
    compared = site.compare()

    assert (0, 3) == (compared.lost, compared.elsewhere)
    assert isinstance(site.world.ledger, Ledger)

"""Disks that are full, broken, read-only or gone: what is answered, what is kept, and that it goes on by itself."""

import errno
import math
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from ledger_scu import freight_of
from real import Real
from small_disk import Disk, small_disk
from stage import Pool

from orchestra import Orchestra, data_sets, files_of
from serving import Serving, until
from sink import Sink, sink
from talaria.model.job import State
from talaria.services.cleaner import Cleaner
from talaria.store.cleaning import Cleaning
from talaria.testing import synthetic_ct

OUT_OF_RESOURCES = 0xA700
#: In which everything goes on, once there is room.
BACK_SECONDS = 30


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """16 MB for the spool."""
    with small_disk(tmp_path / "disk") as found:
        yield found


@pytest.fixture
def served(tmp_path: Path, disk: Disk, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A served home with its spool on that disk."""
    with ExitStack() as stack:
        found = Real(
            Serving(tmp_path, TALARIA_SPOOL=str(disk.folder / "spool"), TALARIA_DISK_RESERVE="0"), far_end, pool
        )
        found.prepare()
        stack.callback(found.serving.abandon)
        found.serving.start()
        yield found


def refused(real: Real, paths: list[Path]) -> list[int]:
    """Statuses of instances that all are refused over one association; C-ECHO is answered at once meanwhile."""
    scu = real.scu()
    left = scu.send(freight_of(paths))
    assert len(paths) == len(left) == len(scu.refusals), "the association did not stand"
    assert scu.echo() <= 1.0
    return scu.refusals


def goes_on(real: Real, paths: list[Path]) -> None:
    """With no hand on it, all is taken and delivered."""
    real.waiting += freight_of(paths)
    assert real.settle(seconds=BACK_SECONDS) < BACK_SECONDS


def over(real: Real, case: str) -> None:
    """The end: nothing lost, nothing twice."""
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=0, case=case)


@pytest.mark.server
def test_spool_that_is_full_read_only_or_gone(served: Real, disk: Disk, tmp_path: Path) -> None:
    """
    Full before an image or in its middle, remounted read-only, or an empty folder in its place: A700, the association
    stays up, C-ECHO is answered within 1 s, nothing half is left; and it goes on by itself (cases 18, 19, 26, 27).
    """
    small = [list(served.pool.study(number)) for number in range(4)]
    large = list(synthetic_ct(tmp_path / "large", slices=1, seed=900, side=1600).paths)
    goes_on(served, small[0])
    with disk.filled():
        assert [OUT_OF_RESOURCES] * 2 == refused(served, small[1])
    goes_on(served, small[1])
    with disk.filled(left_bytes=2 << 20):
        assert [OUT_OF_RESOURCES] == refused(served, large)
        assert [] == list((disk.folder / "spool" / "tmp").iterdir())
    goes_on(served, large)
    with disk.read_only():
        assert [OUT_OF_RESOURCES] * 2 == refused(served, small[2])
    goes_on(served, small[2])
    with disk.hidden():
        assert [OUT_OF_RESOURCES] * 2 == refused(served, small[3])
        assert [] == list(disk.folder.iterdir())
    goes_on(served, small[3])
    over(served, "spool full, read-only, gone")


@pytest.mark.server
def test_spool_without_inodes(tmp_path: Path, far_end: Sink, pool: Pool) -> None:
    """
    A disk that takes no more files is a full disk (case 23).
    """
    with small_disk(tmp_path / "disk", files=1060) as disk:
        served = Real(
            Serving(tmp_path, TALARIA_SPOOL=str(disk.folder / "spool"), TALARIA_DISK_RESERVE="0"), far_end, pool
        )
        served.prepare()
        fillers = []
        with ExitStack() as stack:
            stack.callback(served.serving.abandon)
            served.serving.start()
            with suppress(OSError):
                while True:
                    fillers.append(disk.folder / f"filler{len(fillers)}")
                    fillers[-1].touch()
            assert [OUT_OF_RESOURCES] * 2 == refused(served, list(pool.study(10)))
            for filler in fillers:
                filler.unlink(missing_ok=True)
            goes_on(served, list(pool.study(10)))
            over(served, "no inodes")


@pytest.mark.server
def test_no_room_for_results(served: Real, disk: Disk, tmp_path: Path) -> None:
    """
    A disk that is full while a module works or its results are taken: the job waits, its input is untouched, and it
    goes on by itself when there is room (case 22).
    """
    paths = list(synthetic_ct(tmp_path / "large", slices=1, seed=901, side=1200).paths)
    with ExitStack() as room:
        room.enter_context(disk.filled(left_bytes=4 << 20))  # for the image, not for its copy
        served.waiting += freight_of(paths)
        served.waiting = served.scu().send(served.waiting)
        assert [] == served.waiting
        until(lambda: served.count(State.DEFERRED), seconds=30, what="the job to wait")
        assert 1 == len(list((disk.folder / "spool" / "store").rglob("*.dcm")))
    served.settle(seconds=60)
    over(served, "no room for results")


@pytest.fixture(scope="session")
def broken_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    library = tmp_path_factory.mktemp("library") / "broken_disk.so"
    source = Path(__file__).with_name("broken_disk.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.mark.server
def test_disk_that_breaks(tmp_path: Path, far_end: Sink, pool: Pool, broken_disk: Path) -> None:
    """
    Whatever call fails with whatever error, the sender is told A700 and not success, the process lives, what was not
    synced is not trusted, and the next image is taken (cases 20, 24, 25).
    """
    control = tmp_path / "control"
    served = Real(Serving(tmp_path), far_end, pool)
    served.prepare()
    served.serving.environment |= {"LD_PRELOAD": str(broken_disk), "BROKEN_DISK": str(control)}
    spool = tmp_path / "home" / "spool"
    cases = [
        ("fsync", errno.ENOSPC, "tmp"), ("fsync", errno.EIO, "tmp"), ("fsync", errno.EIO, "new"),
        ("write", errno.EDQUOT, "tmp"), ("write", errno.EIO, "tmp"), ("write", errno.ENOSPC, "tmp"),
        ("open", errno.EMFILE, "tmp"), ("open", errno.ENFILE, "tmp"), ("open", errno.EROFS, "tmp"),
        ("rename", errno.EIO, "new"),
    ]  # fmt: skip
    try:
        served.serving.start()
        (receiver,) = until(lambda: served.serving.pids("receiver"), seconds=20, what="the receiver")
        for number, (call, error, part) in enumerate(cases, start=20):
            control.write_text(f"{call} {error} 1 {spool / part}\n")
            scu = served.scu()
            left = scu.send(freight_of(pool.study(number)))
            assert ([OUT_OF_RESOURCES], 1) == (scu.refusals, len(left)), f"{call} fails with {errno.errorcode[error]}"
            served.waiting += left
        assert {receiver} == served.serving.pids("receiver")
        assert [] == list((spool / "tmp").iterdir())
        control.unlink()
        served.settle(seconds=BACK_SECONDS)
        assert 0 == served.serving.stop()
    finally:
        served.serving.abandon()
    # an image that came late makes the module work on the whole series once more
    served.check().expect(duplicates=len(cases), case=f"{len(cases)} errors of the disk")


@pytest.mark.server
def test_ledger_without_room(tmp_path: Path, far_end: Sink, pool: Pool) -> None:
    """
    The ledger's own disk is full: images are acknowledged as before, wait in `new/`, and are written down and
    delivered by themselves once there is room (case 21).
    """
    with small_disk(tmp_path / "ledger", size="8m") as disk:
        served = Real(Serving(tmp_path, url=f"sqlite:///{disk.folder}/ledger.db"), far_end, pool)
        served.prepare()
        try:
            served.serving.start()
            served.send()
            served.settle()
            with disk.filled():
                scu = served.scu()
                assert [] == scu.send([freight for n in range(40, 80) for freight in freight_of(pool.study(n))])
                assert scu.longest_seconds <= 1.0
                assert scu.echo() <= 1.0
                assert any((tmp_path / "home" / "spool" / "new").iterdir())
            assert served.settle(seconds=2 * BACK_SECONDS) < 2 * BACK_SECONDS
            assert 0 == served.serving.stop()
        finally:
            served.serving.abandon()
        served.check().expect(duplicates=0, case="ledger without room")


BOOK = """
settings: {{series_quiet: 2s, retention: {{done: 30d}}}}
targets:
  share: {{kind: folder, path: {folder}/out}}
  pacs: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: SINK, retry: {{first: 1s, most: 2s}}}}
rules:
  all: {{when: "True", action: route, send: [{targets}]}}
"""


@pytest.mark.parametrize("harm", ["flipped", "cut off"])
def test_damaged_file_is_never_sent(harm: str, tmp_path: Path) -> None:
    """
    A bit that flipped on the disk, or an end that is gone, is found by the hash before anything is delivered; the job
    says which instance and why, and the undamaged one is delivered (case 28).
    """
    (tmp_path / "out").mkdir()
    with sink(tmp_path) as far_end:
        orchestra = Orchestra(tmp_path)
        orchestra.apply(BOOK.format(folder=tmp_path, port=far_end.port, targets="share, pacs"))
        paths = synthetic_ct(tmp_path / "in", slices=2, seed=3, side=32).paths
        orchestra.receive(paths)
        stored = min((orchestra.spool.root / "store").rglob("*.dcm"))
        data = bytearray(stored.read_bytes())
        data[-100] ^= 1
        stored.chmod(0o644)
        stored.write_bytes(data if harm == "flipped" else data[:-100])
        orchestra.wait(timedelta(minutes=5))
        jobs = orchestra.listing.jobs(limit=10).items
        copies = far_end.copies()

    assert {"failed"} == {job.state for job in jobs}
    assert all("1 of 2 instances cannot be delivered" in job.reason for job in jobs)
    assert 1 == len(files_of(tmp_path / "out"))
    assert 1 == len({copy.uid for copy in copies if copy.status == "0000"})


def test_disk_that_fills_slowly(tmp_path: Path) -> None:
    """
    Above the watermark the oldest of what is delivered goes early, only as much as is needed; what is not delivered
    stays, whatever its age and however full the disk (case 29).
    """
    (tmp_path / "out").mkdir()
    with small_disk(tmp_path / "disk") as disk, sink(tmp_path) as far_end:
        home = disk.folder / "home"
        home.mkdir()
        orchestra = Orchestra(home)
        cleaner = Cleaner(
            cleaning=Cleaning(orchestra.ledger), rulebooks=orchestra.rulebooks, spool=orchestra.spool, watermark=0.6,
            uptime=lambda: orchestra.clock.now() - orchestra._began,
        )  # fmt: skip
        cleaner.step(orchestra.clock.now())
        far_end.say("A700*1000")
        orchestra.apply(BOOK.format(folder=tmp_path, port=far_end.port, targets="pacs"))
        kept = synthetic_ct(tmp_path / "kept", slices=2, seed=1, side=700).paths  # 1 MB each
        orchestra.receive(kept)
        orchestra.wait(timedelta(seconds=20))
        orchestra.apply(BOOK.format(folder=tmp_path, port=far_end.port, targets="share"))
        for seed in range(2, 7):
            orchestra.receive(synthetic_ct(tmp_path / f"s{seed}", slices=2, seed=seed, side=700).paths)
            orchestra.wait(timedelta(seconds=20))
        orchestra.clock.move(timedelta(minutes=2))
        needed = math.ceil(cleaner._needed_bytes() / sum(path.stat().st_size for path in kept))
        cleaner.step(orchestra.clock.now())
        left = data_sets((orchestra.spool.root / "store").rglob("*.dcm"))
        orchestra.ledger.close()

        assert 1 <= needed < 5
        assert 12 - 2 * needed == len(left)
        assert left.keys() >= data_sets(kept).keys()

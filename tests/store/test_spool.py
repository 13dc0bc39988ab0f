"""The spool: safe before it is answered for, never changed after, and mended after a kill at any step."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.errors import ConfigError, NoRoom, NotAnInstance
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, build_meta, parse_meta
from talaria.store.spool import HEAD_BYTES, Arriving, Spool, file_digest, origin_of
from talaria.testing import MovedClock, synthetic_ct

META = FileMeta(
    offset=0, sop_class_uid="1.2.840.10008.5.1.4.1.1.2", sop_instance_uid="1.2.3",
    transfer_syntax_uid="1.2.840.10008.1.2.1", source_ae="CT1", sending_ae="CT1", receiving_ae="TALARIA",
    source_address="10.0.0.1",
)  # fmt: skip


@pytest.fixture
def spool(tmp_path: Path, clock: MovedClock) -> Spool:
    return Spool.create(tmp_path / "spool", clock=clock.now)


def arrive(spool: Spool, data: bytes = b"an instance") -> Arriving:
    """A file whose bytes have all come."""
    file = spool.receive(META)
    file.write([memoryview(data)])
    return file


def kept(spool: Spool, data: bytes = b"an instance") -> str:
    """A file that is safe; its ULID."""
    file = arrive(spool, data)
    file.commit()
    return file.instance_id


def files(spool: Spool) -> dict[str, str]:
    """Every file of the spool by the folder it is in."""
    found = [path for path in spool.root.rglob("*") if path.is_file() and path.name != Spool.MARKER]
    return {path.name: path.relative_to(spool.root).parts[0] for path in found}


def body(path: Path) -> bytes:
    """A file's data set."""
    data = path.read_bytes()
    return data[parse_meta(data[:META_LIMIT_BYTES]).offset :]


# -- making and opening --


def test_spool_keeps_its_name(spool: Spool, clock: MovedClock) -> None:
    """
    A spool has a name from its making on; making it again changes nothing.
    """
    assert spool.name == Spool.create(spool.root, clock=clock.now).name == Spool.open(spool.root, clock=clock.now).name
    assert spool.name


def test_shelves_are_there_from_the_beginning(spool: Spool) -> None:
    """
    Whatever its ULID, an instance finds its shelf.
    """
    assert 1024 == len(list((spool.root / "store").iterdir()))


def test_folder_that_is_no_spool_is_refused(tmp_path: Path, clock: MovedClock) -> None:
    """
    A folder without marker, as an unmounted disk looks, is refused and not made a spool of.
    """
    with pytest.raises(ConfigError, match=r"no \.talaria-spool in it .* is its disk mounted\?"):
        Spool.open(tmp_path, clock=clock.now)
    assert [] == list(tmp_path.iterdir())


def test_empty_marker_is_refused(spool: Spool, clock: MovedClock) -> None:
    """
    A marker that a power cut has emptied does not make a spool without a name.
    """
    (spool.root / Spool.MARKER).write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        Spool.open(spool.root, clock=clock.now)


def test_place_that_cannot_be_made_is_refused(tmp_path: Path, clock: MovedClock) -> None:
    """
    A spool below a file cannot be made, and that is said.
    """
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        Spool.create(tmp_path / "file" / "spool", clock=clock.now)


# -- arriving --


@given(st.lists(st.binary(max_size=2000), max_size=12))
def test_bytes_are_kept_as_they_came(spool_of_all: Spool, parts: list[bytes]) -> None:
    """
    However the bytes are cut, the file's data set is theirs, with their size and hash, and the head is its beginning.
    """
    data = b"".join(parts)
    file = spool_of_all.receive(META)
    file.write([memoryview(part) for part in parts])
    file.commit()
    path = spool_of_all.path(file.instance_id)

    assert (data, len(data), hashlib.sha256(data).hexdigest()) == (body(path), file.size_bytes, file.sha256)
    assert data[:HEAD_BYTES] == bytes(file.head)
    assert file.sha256 == file_digest(path, offset=len(path.read_bytes()) - len(data))


@pytest.fixture(scope="module")
def spool_of_all(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    """One spool for all examples of a property."""
    return Spool.create(tmp_path_factory.mktemp("spool"), clock=MovedClock().now)


def test_many_fragments_in_one_write(spool: Spool) -> None:
    """
    More fragments than one system call takes are all written.
    """
    file = spool.receive(META)
    file.write([memoryview(bytes([n % 256])) for n in range(3000)])
    file.commit()

    assert bytes(n % 256 for n in range(3000)) == body(spool.path(file.instance_id))


def test_header_can_be_read_before_the_end(spool: Spool) -> None:
    """
    What was written can be read while the file still arrives, from the start of the data set.
    """
    file = arrive(spool, b"0123456789")

    assert (b"345", b"89", b"") == (file.read(3, 3), file.read(8, 9), file.read(20, 1))
    file.discard()


def test_file_moves_from_tmp_to_new_to_store(spool: Spool) -> None:
    """
    A file lies in tmp/ while it arrives, in new/ once safe, in store/ once written down; names never change.
    """
    file = arrive(spool)
    name = f"{file.instance_id}.dcm"
    assert ["tmp"] == list(files(spool).values())
    file.commit()
    assert {name: "new"} == files(spool)
    assert [file.instance_id] == spool.waiting()
    spool.shelve(file.instance_id)
    assert {name: "store"} == files(spool)
    assert spool.root / "store" / name[24:26] / name == spool.path(file.instance_id)


def test_who_sent_it_stands_in_the_file(spool: Spool) -> None:
    """
    The file alone tells who sent it to whom.
    """
    meta = parse_meta(spool.path(kept(spool)).read_bytes()[:META_LIMIT_BYTES])
    origin = origin_of(meta)

    assert ("CT1", "TALARIA", "10.0.0.1") == (origin.calling_ae, origin.called_ae, origin.address)


def test_nobody_may_change_a_file(spool: Spool) -> None:
    """
    A file is read only for all.
    """
    assert 0o444 == spool.path(kept(spool)).stat().st_mode & 0o777


def test_discarded_file_leaves_nothing(spool: Spool) -> None:
    """
    What is not wanted leaves nothing, also when it is said twice.
    """
    file = arrive(spool)
    file.discard()
    file.discard()

    assert {} == files(spool)


def test_new_files_in_order(spool: Spool, clock: MovedClock) -> None:
    """
    What waits in new/ is listed from the oldest on.
    """
    ids = []
    for _ in range(5):
        ids.append(kept(spool))
        clock.move(timedelta(milliseconds=1))

    assert ids == spool.waiting()


def test_age_in_new(spool: Spool) -> None:
    """
    A file's age is that of its last byte; one that is not there has none.
    """
    instance_id = kept(spool)
    os.utime(spool.path(instance_id), (0, 0))

    assert timedelta(0) < spool.age_in_new(instance_id, now=MovedClock().now())
    assert timedelta(0) == spool.age_in_new("0" * 26, now=MovedClock().now())


# -- no room --


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond that: the disk is full at that byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_disk_full_in_mid_image(spool: Spool) -> None:
    """
    A disk that fills while an image comes is no room, and nothing of the image is left.
    """
    with largest_file(100_000):
        file = spool.receive(META)
        with pytest.raises(NoRoom, match="the spool cannot write an instance"):
            file.write([memoryview(bytes(60_000))] * 2)
        file.discard()

    assert {} == files(spool)


def test_disk_full_at_the_first_byte(spool: Spool) -> None:
    """
    A disk without room for the first bytes is no room, and neither a file nor a descriptor is left.
    """
    before = os.listdir("/proc/self/fd")
    with largest_file(0), pytest.raises(NoRoom, match="the spool cannot begin a file"):
        spool.receive(META)

    assert ({}, len(before)) == (files(spool), len(os.listdir("/proc/self/fd")))


def test_reserve_is_kept_back(spool: Spool, clock: MovedClock) -> None:
    """
    Nothing is received while less is free than is to be kept back.
    """
    tight = Spool.open(spool.root, clock=clock.now, reserve_bytes=1 << 62)

    with pytest.raises(NoRoom, match="are kept back"):
        tight.receive(META)
    assert spool.capacity()[0] >= spool.capacity()[1] > 0


def test_vanished_disk_is_noticed_before_the_answer(spool: Spool) -> None:
    """
    A file whose spool lost its marker, as when the disk is unmounted, is not answered for.
    """
    file = arrive(spool)
    (spool.root / Spool.MARKER).unlink()

    with pytest.raises(NoRoom, match="is the disk mounted"):
        file.commit()
    file.discard()
    assert {} == files(spool)


def test_folder_that_cannot_be_synced_is_not_answered_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file whose directory could not be synced is not kept: the sender was not told that it was.
    """
    file, sync = arrive(spool), os.fsync

    def broken(descriptor: int) -> None:
        if descriptor == spool._new_directory:
            raise OSError(errno.EIO, "broken")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(NoRoom, match="cannot sync an instance"):
        file.commit()
    file.discard()

    assert {} == files(spool)


# -- lying still --


def test_shelving_again_does_nothing(spool: Spool) -> None:
    """
    A file is shelved once; again does nothing, nor for one that is not there.
    """
    instance_id = kept(spool)
    for _ in range(3):
        spool.shelve(instance_id)
    spool.shelve("0" * 26)

    assert ["store"] == list(files(spool).values())


def test_forgetting_a_repeat(spool: Spool) -> None:
    """
    An identical copy leaves new/; a file that is shelved is not touched by it.
    """
    copy, shelved = kept(spool), kept(spool)
    spool.shelve(shelved)
    for instance_id in (copy, copy, shelved):
        spool.forget(instance_id)

    assert {f"{shelved}.dcm": "store"} == files(spool)


def test_dropping(spool: Spool) -> None:
    """
    An instance is removed for good wherever it lies; again does nothing.
    """
    fresh, shelved = kept(spool), kept(spool)
    spool.shelve(shelved)
    for instance_id in (fresh, shelved, shelved):
        spool.drop(instance_id)

    assert {} == files(spool)


def test_what_cannot_be_read_is_put_aside(spool: Spool) -> None:
    """
    A file of new/ that is no instance is moved away, not deleted.
    """
    instance_id = kept(spool, b"junk")

    assert b"junk" == body(spool.set_aside(instance_id))
    assert {f"{instance_id}.dcm": "odd"} == files(spool)


def test_instance_that_is_gone(spool: Spool) -> None:
    """
    An instance that lies nowhere is said to be missing, by its name.
    """
    with pytest.raises(FileNotFoundError, match=f"instance {'0' * 26} is not in spool {spool.name}"):
        spool.path("0" * 26)


# -- results of modules --


def test_result_is_adopted(spool: Spool, tmp_path: Path) -> None:
    """
    A module's output is copied whole into the store, with size and hash of its data set, read only.
    """
    (source,) = synthetic_ct(tmp_path / "ct", slices=1, side=64).paths
    size, sha256 = spool.adopt(source, "0" * 26)
    found = spool.path("0" * 26)

    assert source.read_bytes() == found.read_bytes()
    assert (len(body(source)), hashlib.sha256(body(source)).hexdigest()) == (size, sha256)
    assert (0o444, 1) == (found.stat().st_mode & 0o777, found.stat().st_nlink)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_adopted_size_is_that_of_the_data_set(spool: Spool, tmp_path: Path, size: int) -> None:
    """
    The data set is counted and hashed without its meta header, however long it is.
    """
    data = os.urandom(size)
    (tmp_path / "x.dcm").write_bytes(build_meta(META) + data)

    assert (size, hashlib.sha256(data).hexdigest()) == spool.adopt(tmp_path / "x.dcm", "0" * 26)


def hostile(folder: Path, what: str) -> Path:
    """A file that a module may leave in place of a result."""
    path = folder / "result.dcm"
    secret = folder / "secret"
    secret.write_bytes(b"do not read")
    match what:
        case "link":
            path.symlink_to(secret)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("no DICOM" * 100)
    return path


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "empty", "text"])
def test_result_that_is_no_instance_is_refused(spool: Spool, tmp_path: Path, what: str) -> None:
    """
    What is no regular Part 10 file is refused, and nothing of it is left.
    """
    with pytest.raises(NotAnInstance):
        spool.adopt(hostile(tmp_path, what), "0" * 26)

    assert {} == files(spool)


def test_result_without_room(spool: Spool, tmp_path: Path) -> None:
    """
    A result that the disk has no room for is no room, and nothing of it is left to fill the disk further.
    """
    (tmp_path / "x.dcm").write_bytes(build_meta(META) + bytes(200_000))
    with largest_file(100_000), pytest.raises(NoRoom, match="the spool cannot take a result"):
        spool.adopt(tmp_path / "x.dcm", "0" * 26)

    assert {} == files(spool)


def test_link_shows_the_instance_to_a_job(spool: Spool) -> None:
    """
    A job sees an instance as another name of the same file, whether it is shelved or not.
    """
    fresh, shelved = kept(spool), kept(spool)
    spool.shelve(shelved)
    folder = spool.folder("job-1-1")
    for instance_id in (fresh, shelved):
        spool.link(instance_id, folder / instance_id)

        assert spool.path(instance_id).samefile(folder / instance_id)
    spool.remove_folder("job-1-1")
    assert (b"an instance", []) == (body(spool.path(shelved)), spool.folders())


def test_link_copies_where_links_cannot_reach(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where a link cannot be made, as on another file system, the job gets a read-only copy.
    """

    def refuse(source: Path, destination: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    instance_id = kept(spool)
    folder = spool.folder("job-1-1")
    monkeypatch.setattr(os, "link", refuse)
    spool.link(instance_id, folder / "copy")

    assert b"an instance" == body(folder / "copy")
    assert 0o444 == (folder / "copy").stat().st_mode & 0o777


def test_folder_of_a_job_is_fresh(spool: Spool) -> None:
    """
    What an earlier attempt left in a job's folder is gone.
    """
    (spool.folder("job-1-1") / "left").touch()

    assert [] == list(spool.folder("job-1-1").iterdir())
    assert ["job-1-1"] == spool.folders()


# -- kills --

CHILD = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from talaria.model.part10 import FileMeta
from talaria.store.spool import Spool

root, step = Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
meta = FileMeta(offset=0, sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid="1.2.840.10008.1.2.1",
                source_ae="CT1", sending_ae="CT1", receiving_ae="TALARIA", source_address="")
spool = Spool.open(root, clock=lambda: datetime.now(UTC))
if step == "adopt":
    os.rename = die
    spool.adopt(Path(sys.argv[3]), "0" * 26)
file = spool.receive(meta)
step == "begin" and die()
file.write([memoryview(b"an instance")])
if step == "sync":
    os.fsync = die
if step == "rename":
    os.rename = die
if step == "directory":
    real = os.fsync
    os.fsync = lambda fd: die() if fd == spool._new_directory else real(fd)
file.commit()
print(file.instance_id, flush=True)
step == "answer" and die()
if step == "shelve":
    os.rename = die
spool.shelve(file.instance_id)
die()
"""


def kill_at(spool: Spool, step: str, *more: str) -> str:
    """What a process answered that was killed there; empty when it did not come to that."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(spool.root), step, *more], check=False, stdout=subprocess.PIPE, text=True
    )
    assert -signal.SIGKILL == child.returncode
    return child.stdout.strip()


@pytest.mark.parametrize("step", ["begin", "sync", "rename"])
def test_killed_before_it_was_safe(spool: Spool, step: str) -> None:
    """
    A receiver killed before the rename has answered for nothing, and what it left is swept.
    """
    assert "" == kill_at(spool, step)
    assert (["tmp"], []) == (list(files(spool).values()), spool.waiting())
    assert (1, {}) == (spool.sweep(), files(spool))


def test_killed_between_rename_and_sync(spool: Spool) -> None:
    """
    A receiver killed after the rename had not answered yet; the file is whole, and is taken in: it does no harm.
    """
    assert "" == kill_at(spool, "directory")
    (instance_id,) = spool.waiting()

    assert (b"an instance", 0) == (body(spool.path(instance_id)), spool.sweep())


@pytest.mark.parametrize(("step", "where"), [("answer", "new"), ("shelve", "new"), ("after", "store")])
def test_killed_after_the_answer(spool: Spool, step: str, where: str) -> None:
    """
    What was answered for is there whole, wherever its receiver was killed afterwards.
    """
    instance_id = kill_at(spool, step)

    assert {f"{instance_id}.dcm": where} == files(spool)
    assert (b"an instance", 0) == (body(spool.path(instance_id)), spool.sweep())


def test_killed_while_a_result_is_taken(spool: Spool, tmp_path: Path) -> None:
    """
    A processor killed while it takes a result leaves a part that is swept, and no result.
    """
    (source,) = synthetic_ct(tmp_path / "ct", slices=1, side=64).paths
    kill_at(spool, "adopt", str(source))

    assert ["tmp"] == list(files(spool).values())
    assert (1, {}) == (spool.sweep(), files(spool))


def test_sweep_leaves_what_arrives_now(spool: Spool) -> None:
    """
    A sweep leaves the files of processes that live, our own among them.
    """
    file = arrive(spool)

    assert 0 == spool.sweep()
    file.commit()
    assert [file.instance_id] == spool.waiting()


def test_sweep_knows_a_number_used_again(spool: Spool) -> None:
    """
    What a dead process left is swept though another of the same number runs, as after a container's restart.
    """
    for owner in (f"{os.getpid()}-1", f"{os.getpid()}", "", "x", "999999999-7"):
        (spool.root / "tmp" / f"{'0' * 26}.{owner}").touch()

    assert (5, {}) == (spool.sweep(), files(spool))

"""Images from files, folders and archives, taken as if they had been sent."""

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestra import Orchestra, data_sets, files_of
from talaria.dimse.acceptor import Association
from talaria.model.dicom import Origin
from talaria.model.errors import ConfigError, LedgerAway
from talaria.services.importer import ArchiveLimits, Importer, ImportTally
from talaria.services.receiver import SpoolSink
from talaria.store.schema import series
from talaria.store.spool import new_ulid
from talaria.testing import synthetic_ct

MINUTE = timedelta(minutes=1)
Pack = Callable[[Path, list[Path]], Path]


@pytest.fixture
def orchestra(tmp_path: Path) -> Orchestra:
    (tmp_path / "out").mkdir()
    found = Orchestra(tmp_path)
    found.apply(
        f"settings: {{series_quiet: 10s}}\ntargets: {{out: {{kind: folder, path: {tmp_path}/out}}}}\n"
        "rules: {never: {when: 'False', send: [out]}}"
    )
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return list(synthetic_ct(tmp_path / "ct", slices=4, side=16).paths)


def take(orchestra: Orchestra, *paths: Path, rule: str = "", limits: ArchiveLimits | None = None) -> ImportTally:
    """Import them."""
    association = Association(
        id=new_ulid(orchestra.clock.now()), origin=Origin(calling_ae="IMPORT", called_ae="TALARIA", address=""),
        implementation_class_uid="", implementation_version="",
    )  # fmt: skip
    sink = SpoolSink(spool=orchestra.spool, indexer=orchestra.indexer, clock=orchestra.clock.now, forced=rule)
    importer = Importer(
        sink=sink, record=orchestra.indexer.catch_up, association=association, limits=limits or ArchiveLimits()
    )
    return importer.take(paths)


def counts(tally: ImportTally) -> tuple[int, int, int]:
    return tally.taken, tally.skipped, tally.refused


def zipped(path: Path, files: list[Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"../../../etc/{number}")
    return path


def tarred(path: Path, files: list[Path]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for number, file in enumerate(files):
            archive.add(file, f"/etc/{number}" + "x" * 200)
    return path


def test_folder_is_taken_by_the_rule_that_was_named(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    What is imported for a rule goes its way bit for bit, whatever the rule says; what is no image is skipped.
    """
    (tmp_path / "ct" / "readme.txt").write_text("hello")
    tally = take(orchestra, tmp_path / "ct", rule="never")
    orchestra.wait(MINUTE)
    (line,) = orchestra.listing.study(orchestra.listing.studies().items[0].study_uid).series

    assert (4, 1, 0) == counts(tally)
    assert data_sets(images) == files_of(tmp_path / "out")
    assert "IMPORT" == line.calling_ae


def test_import_again_counts_repeats(orchestra: Orchestra, images: list[Path]) -> None:
    """
    What is there already is there once, however often it is imported.
    """
    take(orchestra, *images[:2])
    tally = take(orchestra, *images)

    assert {"new": 2, "repeat": 2} == tally.findings
    assert 4 == orchestra.listing.studies().items[0].instances


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_archive_is_taken_and_its_names_are_not_used(
    orchestra: Orchestra, images: list[Path], tmp_path: Path, pack: Pack
) -> None:
    """
    Members of archives are taken like files; what they are called is nothing to us.
    """
    tally = take(orchestra, pack(tmp_path / "some.bin", [*images, Path(__file__)]), rule="never")
    orchestra.wait(MINUTE)

    assert (4, 1, 0) == counts(tally)
    assert data_sets(images) == files_of(tmp_path / "out")


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_archive_in_an_archive_is_refused(orchestra: Orchestra, images: list[Path], tmp_path: Path, pack: Pack) -> None:
    """
    Only one level is opened: bombs are nested.
    """
    inner = pack(tmp_path / "inner", images)
    tally = take(orchestra, pack(tmp_path / "outer", [images[0], inner]))

    assert (1, 0, 1) == counts(tally)
    assert "outer, member 2: is an archive in an archive; unpack it first" in tally.reasons[0]


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_damaged_archive_is_told(orchestra: Orchestra, images: list[Path], tmp_path: Path, pack: Pack) -> None:
    """
    What can be read of a cut archive is taken, and the rest told: never a traceback.
    """
    whole = pack(tmp_path / "whole", images).read_bytes()
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut").write_bytes(whole[:cut])
        tally = take(orchestra, tmp_path / "cut")

        assert tally.refused + tally.skipped >= 1
    (tmp_path / "turned.tgz").write_bytes(whole[:200] + bytes(b ^ 255 for b in whole[200:400]) + whole[400:])
    assert take(orchestra, tmp_path / "turned.tgz").refused >= 1


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_archive_that_unpacks_to_too_much_is_refused(
    orchestra: Orchestra, images: list[Path], tmp_path: Path, pack: Pack
) -> None:
    """
    Beyond the ratio nothing more of an archive is read; what came before it was taken.
    """
    big = tmp_path / "big"
    big.write_bytes(images[1].read_bytes() + bytes(3_000_000))
    packed = pack(tmp_path / "packed", [images[0], big, images[2]])
    tally = take(orchestra, packed, limits=ArchiveLimits(always_bytes=100_000, ratio=1))

    assert (1, True) == (tally.taken, tally.refused >= 1)
    assert "the archive unpacks to far more than its size" in tally.reasons[0]


def test_members_are_counted(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    An archive of too many members is taken up to the limit, and told.
    """
    for pack in (zipped, tarred):
        tally = take(orchestra, pack(tmp_path / pack.__name__, images), limits=ArchiveLimits(members=2))

        assert (2, 0, 1) == counts(tally)
        assert "holds more than 2 members" in tally.reasons[0]


def test_extended_header_of_any_size_is_not_read(orchestra: Orchestra, tmp_path: Path) -> None:
    """
    A tar archive whose header says it is huge costs no memory.
    """
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    (tmp_path / "bomb").write_bytes(gzip.compress(header.tobuf() + bytes(4 << 20)))
    tally = take(orchestra, tmp_path / "bomb")

    assert (0, 1) == (tally.taken, tally.skipped + tally.refused)


def test_encrypted_member_is_told(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    A member that needs a password is refused by its number.
    """
    data = bytearray(zipped(tmp_path / "zip", images[:1]).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "zip").write_bytes(bytes(data))

    assert [f"{tmp_path}/zip, member 1: is encrypted; unpack it first"] == take(orchestra, tmp_path / "zip").reasons


def test_directory_of_a_cd_is_skipped(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    A DICOMDIR lists images and is none.
    """
    found = images[0].read_bytes()
    uid = b"1.2.840.10008.5.1.4.1.1.2\0"
    assert uid in found
    (tmp_path / "DICOMDIR").write_bytes(found.replace(uid, b"1.2.840.10008.1.3.10\0\0\0\0\0\0", 1))

    assert (0, 1, 0) == counts(take(orchestra, tmp_path / "DICOMDIR"))


def test_broken_image_is_refused_and_the_others_taken(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    A file that begins like an image and is cut off is named, with the reason.
    """
    (tmp_path / "ct" / "000").write_bytes(images[0].read_bytes()[:400])
    tally = take(orchestra, tmp_path / "ct")

    assert (4, 0, 1) == counts(tally)
    assert tally.reasons[0].startswith(f"{tmp_path}/ct/000: ")


def test_path_that_is_not_there(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    What came before a path that does not exist is taken.
    """
    with pytest.raises(ConfigError, match="No such file or directory"):
        take(orchestra, images[0], tmp_path / "nowhere")

    assert 1 == orchestra.listing.studies().items[0].instances


def test_killed_before_the_rows_the_rule_is_kept(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    With the ledger away, or a kill between file and row, images lie in new/ with the rule that is to take them.
    """

    def away() -> dict[str, int]:
        raise LedgerAway("no ledger")

    association = Association(
        id=new_ulid(orchestra.clock.now()), origin=Origin(calling_ae="IMPORT", called_ae="TALARIA", address=""),
        implementation_class_uid="", implementation_version="",
    )  # fmt: skip
    sink = SpoolSink(spool=orchestra.spool, indexer=orchestra.indexer, clock=orchestra.clock.now, forced="never")
    importer = Importer(sink=sink, record=away, association=association, limits=ArchiveLimits())
    tally = importer.take(images)
    assert (4, 4) == (tally.taken, tally.waiting)
    again = Orchestra(tmp_path)
    again.clock.move(timedelta(days=1))
    again.rulebooks.follow(again.clock.now())
    assert 4 == again.indexer.adopt_strays()
    again.wait(MINUTE)

    assert data_sets(images) == files_of(tmp_path / "out")
    with again.ledger.reading() as connection:
        assert "never" == connection.execute(sa.select(series.c.forced)).scalar_one()


def test_rule_that_is_gone_holds_what_was_meant_for_it(orchestra: Orchestra, images: list[Path]) -> None:
    """
    A rule that was asked for by name and has vanished since is not replaced by others: a person decides.
    """
    take(orchestra, *images, rule="vanished")
    orchestra.wait(MINUTE)
    (case,) = orchestra.listing.study(orchestra.listing.studies().items[0].study_uid).cases

    assert ("held", "rule 'vanished' was asked for by name, but is not in revision 1; route it to another") == (
        case.state, case.reason
    )  # fmt: skip


def test_odd_files_are_skipped(orchestra: Orchestra, tmp_path: Path) -> None:
    """
    Empty files, compressed text and zip archives of nothing are no images, and nothing is wrong with them.
    """
    (tmp_path / "empty").touch()
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"hello"))
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "none.zip").write_bytes(buffer.getvalue())

    assert (0, 2, 0) == counts(take(orchestra, tmp_path / "empty", tmp_path / "text.gz", tmp_path / "none.zip"))


def damaged_zip(path: Path) -> Path:
    """An archive whose only member, packed by LZMA, cannot be unpacked."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", bytes(128) + b"DICM" + bytes(5000))
    content = bytearray(packed.getvalue())
    content[40:60] = bytes(byte ^ 0x55 for byte in content[40:60])
    path.write_bytes(content)
    return path


def sparse_tar(path: Path, headers: dict[str, str]) -> Path:
    """An archive that says nonsense of a sparse file."""
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.size, member.pax_headers = 600, headers
        archive.addfile(member, io.BytesIO(b"garbage\n" * 75))
    return path


def test_no_archive_stops_an_import(orchestra: Orchestra, images: list[Path], tmp_path: Path) -> None:
    """
    What readers of archives raise for damage of any kind is told of that archive; what comes after is taken.
    """
    odd = (
        damaged_zip(tmp_path / "a.zip"),
        sparse_tar(tmp_path / "b.tar", {"GNU.sparse.map": "a,b", "GNU.sparse.size": "600"}),
        sparse_tar(tmp_path / "c.tar", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}),
    )
    tally = take(orchestra, *odd, *images)

    assert (len(images), 0, 3) == counts(tally)


def test_folder_that_cannot_be_read_is_told(orchestra: Orchestra, tmp_path: Path) -> None:
    """
    What lies too deep to be reached is not left out in silence.
    """
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)
    tally = take(orchestra, tmp_path / ("d" * 250))

    assert (1, True) == (tally.refused, "too long" in tally.reasons[0])

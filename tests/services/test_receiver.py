"""The receiver's second half: rows for what is safe in `new/`, whatever the disk does meanwhile."""

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import dcmread

from orchestra import Orchestra, data_sets, files_of
from talaria.model.dicom import Origin
from talaria.model.errors import NoRoom
from talaria.model.rulebook import Rulebook, parse
from talaria.services.receiver import admission
from talaria.testing import synthetic_ct

SOON = timedelta(seconds=30)


@pytest.fixture
def orchestra(tmp_path: Path) -> Orchestra:
    """Everything to one folder."""
    (tmp_path / "out").mkdir()
    found = Orchestra(tmp_path)
    found.apply(
        f"""
settings: {{series_quiet: 2s}}
targets: {{share: {{kind: folder, path: {tmp_path}/out}}}}
rules: {{all: {{when: "True", action: route, send: [share]}}}}
"""
    )
    return found


def failing(number: int) -> Callable[..., None]:
    """What a disk says that fails."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def everywhere(orchestra: Orchestra, part: str) -> list[Path]:
    return list((orchestra.spool.root / part).rglob("*.dcm"))


def age_strays(orchestra: Orchestra) -> None:
    """Let what lies in `new/` be older than anybody's hands."""
    past = orchestra.clock.now() - timedelta(minutes=1)
    for path in everywhere(orchestra, "new"):
        os.utime(path, (past.timestamp(), past.timestamp()))


def test_file_that_cannot_be_shelved_is_delivered_and_shelved_later(
    tmp_path: Path, orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A row that is committed stands, though the file cannot leave new/ yet; it is not set aside.
    """
    source = synthetic_ct(tmp_path / "ct", slices=2, side=32)
    with monkeypatch.context() as broken:
        broken.setattr(orchestra.spool, "shelve", failing(errno.ENOSPC))
        orchestra.receive(source.paths)
    orchestra.wait(SOON)

    assert [] == everywhere(orchestra, "odd")
    assert data_sets(source.paths) == files_of(tmp_path / "out")
    age_strays(orchestra)
    orchestra.indexer.adopt_strays()
    assert ([], 2) == (everywhere(orchestra, "new"), len(everywhere(orchestra, "store")))


def test_stray_that_cannot_be_read_hides_no_other(tmp_path: Path, orchestra: Orchestra) -> None:
    """
    One broken file in new/ stays where it is; those behind it are written down.
    """
    source = synthetic_ct(tmp_path / "ct", slices=2, side=32)
    for path in source.paths:
        orchestra.store(path)
    orchestra._build()  # the receiver died
    (orchestra.spool.root / "new" / f"{'0' * 26}.dcm").mkdir()
    age_strays(orchestra)
    orchestra.indexer.adopt_strays()
    orchestra.wait(SOON)

    assert data_sets(source.paths) == files_of(tmp_path / "out")


def test_identical_copy_replaces_one_whose_file_is_lost(tmp_path: Path, orchestra: Orchestra) -> None:
    """
    After a disk lost a file, sending it again brings it back.
    """
    source = synthetic_ct(tmp_path / "ct", slices=1, side=32)
    orchestra.receive(source.paths)
    for path in everywhere(orchestra, "store"):
        path.unlink()
    orchestra.receive(source.paths)
    orchestra.wait(SOON)

    assert 1 == len(everywhere(orchestra, "store"))
    assert data_sets(source.paths) == files_of(tmp_path / "out")


def test_stray_does_not_overtake_what_came_after_it(tmp_path: Path, orchestra: Orchestra) -> None:
    """
    A first version that is written down late, from new/, does not replace the corrected one that came after it.
    """
    first = synthetic_ct(tmp_path / "ct", slices=1, side=32).paths[0]
    corrected = tmp_path / "corrected.dcm"
    changed = dcmread(first)
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(corrected)
    orchestra.store(first)
    orchestra._build()  # the receiver died
    orchestra.clock.move(timedelta(seconds=1))
    orchestra.receive([corrected])
    age_strays(orchestra)
    orchestra.indexer.adopt_strays()
    orchestra.wait(SOON)

    assert data_sets([corrected]) == files_of(tmp_path / "out")
    assert 2 == len(everywhere(orchestra, "store"))


def test_spool_that_is_away_has_no_room(tmp_path: Path, orchestra: Orchestra) -> None:
    """
    With its disk unmounted the sender is told to come back (A700), and nothing is made where the disk was.
    """
    source = synthetic_ct(tmp_path / "ct", slices=1, side=32)
    os.rename(orchestra.spool.root, tmp_path / "elsewhere")
    orchestra.spool.root.mkdir()

    with pytest.raises(NoRoom):
        orchestra.store(source.paths[0])
    assert [] == list(orchestra.spool.root.iterdir())


@pytest.mark.parametrize(
    ("rulebook", "calling", "called", "admitted"),
    [
        ("rules: {}", "ANY", "TALARIA", True),
        ("rules: {}", "ANY", "OTHER", False),
        ("listeners: {A: {}}\nrules: {}", "ANY", "A", True),
        ("listeners: {A: {}}\nrules: {}", "ANY", "TALARIA", False),
        ("listeners: {A: {unknown: refuse}}\nsenders: {ct: {ae: CT1}}\nrules: {}", "CT1", "A", True),
        ("listeners: {A: {unknown: refuse}}\nsenders: {ct: {ae: CT1}}\nrules: {}", "CT2", "A", False),
        ("listeners: {A: {unknown: refuse}}\nsenders: {ct: {address: 10.1.2.0/24}}\nrules: {}", "X", "A", True),
        ("listeners: {A: {unknown: refuse}}\nsenders: {ct: {address: 10.1.3.0/24}}\nrules: {}", "X", "A", False),
    ],
)
def test_who_may_associate(orchestra: Orchestra, rulebook: str, calling: str, called: str, admitted: bool) -> None:
    """
    The called AE title must be a listener; a listener that refuses strangers lets listed senders in alone.
    """
    book: Rulebook = parse(rulebook, shelves=orchestra.shelves)
    origin = Origin(calling_ae=calling, called_ae=called, address="10.1.2.3")

    assert admitted is (admission(book, origin) is None)

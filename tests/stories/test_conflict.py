"""The same SOP Instance UID again: identical copies are counted, other contents are kept beside and told."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import dcmread

from orchestra import Orchestra, data_sets
from serving import ON_BOTH, Serving, until
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.testing import synthetic_ct

RULES = """
settings: {{series_quiet: 2s}}
targets:
  share: {{kind: folder, path: {folder}/out}}
rules:
  all: {{when: "True", action: route, send: [share]}}
"""


def pair(folder: Path) -> tuple[Path, Path]:
    """An instance, and another content under its SOP Instance UID."""
    first = synthetic_ct(folder / "first", seed=7, slices=1, side=64).paths[0]
    changed = dcmread(first)
    changed.PixelData = bytes(reversed(changed.PixelData))
    second = folder / "second.dcm"
    changed.save_as(second)
    return first, second


def contents(folder: Path) -> list[bytes]:
    """Data sets of all delivered files."""
    found = []
    for path in sorted(folder.rglob("*.dcm")):
        data = path.read_bytes()
        found.append(data[parse_meta(data[:META_LIMIT_BYTES]).offset :])
    return found


@pytest.mark.server
@ON_BOTH
def test_other_content_under_a_known_uid_is_kept_and_told(tmp_path: Path, serving: Serving) -> None:
    """
    Both contents are kept in the spool, the event log tells of the conflict, and the newer one is delivered as well.
    """
    (tmp_path / "out").mkdir()
    first, second = pair(tmp_path)
    serving.apply(RULES.format(folder=tmp_path))
    serving.start()
    serving.send(first)
    until(serving.is_idle, seconds=30, what="the first delivery")
    serving.send(second)
    conflict = until(lambda: serving.events("instance.conflict"), seconds=30, what="the conflict")[0]
    until(lambda: 2 == len(contents(tmp_path / "out")), seconds=30, what="the second delivery")
    expected = {data_sets([first]).popitem()[1], data_sets([second]).popitem()[1]}
    spool = {path.read_bytes() for path in (tmp_path / "home" / "spool" / "store").rglob("*.dcm")}

    assert data_sets([first]).keys() == {conflict["detail"]["sop_instance_uid"]}
    assert expected == {file[parse_meta(file).offset :] for file in spool}
    assert expected == set(contents(tmp_path / "out"))


def test_identical_copy_is_counted_and_nothing_else(tmp_path: Path) -> None:
    """
    The same bytes again are acknowledged and counted; no second file, no second delivery, no change of the quiet time.
    """
    (tmp_path / "out").mkdir()
    orchestra = Orchestra(tmp_path)
    orchestra.apply(RULES.format(folder=tmp_path))
    first, _ = pair(tmp_path)
    orchestra.receive([first])
    orchestra.clock.move(timedelta(seconds=1))
    orchestra.receive([first])
    orchestra.clock.move(timedelta(seconds=1))
    orchestra.step()
    uid = next(iter(data_sets([first])))
    history = orchestra.listing.instance(uid)

    assert [1] == [version["repeats"] for version in history]
    assert ["share"] == [delivery["target"] for delivery in history[0]["deliveries"]]
    assert 1 == len(contents(tmp_path / "out"))
    assert 1 == len(list(orchestra.spool.root.rglob("*.dcm")))


def test_newest_of_a_conflict_is_the_one_delivered(tmp_path: Path) -> None:
    """
    When the other content comes before the case is closed, only the newest is delivered; both stay in the spool.
    """
    (tmp_path / "out").mkdir()
    orchestra = Orchestra(tmp_path)
    orchestra.apply(RULES.format(folder=tmp_path))
    first, second = pair(tmp_path)
    orchestra.receive([first])
    orchestra.receive([second])
    orchestra.wait(timedelta(seconds=5))

    assert [data_sets([second]).popitem()[1]] == contents(tmp_path / "out")
    assert 2 == len(list(orchestra.spool.root.rglob("*.dcm")))

"""The module pass: what comes in goes out."""

from pathlib import Path

import pytest

from talaria.model.errors import Permanent
from talaria.modules.files import inputs
from talaria.modules.pass_ import Pass
from talaria.testing import synthetic_ct


def test_input_becomes_output(tmp_path: Path) -> None:
    """
    Every file is copied byte for byte, and is a file of its own.
    """
    study = synthetic_ct(tmp_path / "in", slices=2, side=32)
    (tmp_path / "in" / "task.json").write_text("{}")
    (tmp_path / "in" / "note.txt").write_text("note")
    (tmp_path / "out").mkdir()

    Pass().run(tmp_path / "in", tmp_path / "out", {})

    assert {*(path.name for path in study.paths), "note.txt"} == {path.name for path in (tmp_path / "out").iterdir()}
    for path in study.paths:
        copied = tmp_path / "out" / path.name
        assert path.read_bytes() == copied.read_bytes()
        assert path.stat().st_ino != copied.stat().st_ino


def test_deep_folders_are_refused(tmp_path: Path) -> None:
    """
    An input that nests without end is refused.
    """
    deep = tmp_path.joinpath(*["d"] * 18)
    deep.mkdir(parents=True)
    (deep / "file").touch()

    with pytest.raises(Permanent, match="folders are nested more than 16 deep in the input"):
        list(inputs(tmp_path))

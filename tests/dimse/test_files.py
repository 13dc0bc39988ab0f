"""Finding instances among files."""

import os
from pathlib import Path

import pytest

from talaria.dimse.files import Found, Skipped, find_instances
from talaria.model.errors import ConfigError
from wire import write_instance


def test_folder_is_searched_and_what_is_no_instance_is_skipped(tmp_path: Path) -> None:
    """Text, an empty file, a DICOMDIR, a file without meta, a pipe and a dangling link are counted, not sent."""
    (tmp_path / "deep").mkdir()
    good = [write_instance(tmp_path, 1), write_instance(tmp_path / "deep", 2)]
    write_instance(tmp_path, 3, sop_class="1.2.840.10008.1.3.10")
    write_instance(tmp_path, 4, sop_class="nothing")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    found = list(find_instances([tmp_path]))

    assert sorted(good) == sorted(item.path for item in found if isinstance(item, Found))
    assert 6 == sum(isinstance(item, Skipped) for item in found)


def test_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A typing error is not a folder without instances."""
    with pytest.raises(ConfigError, match="No such file"):
        list(find_instances([tmp_path / "nowhere"]))

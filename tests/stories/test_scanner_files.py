"""Every scanner file arrives everywhere, byte for byte, through a real `talaria serve`."""

import io
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data.data_manager import DATA_ROOT

from orchestra import data_sets, files_of
from serving import ENVIRONMENT, ON_BOTH, Orthanc, Serving, orthanc, storescp, until
from talaria.dimse.files import Found, find_instances
from talaria.testing import synthetic_ct, synthetic_mr

pytestmark = pytest.mark.server


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Orthanc]:
    """An Orthanc."""
    with orthanc(tmp_path / "orthanc") as peer:
        yield peer


@pytest.fixture
def routing(tmp_path: Path, archive: Orthanc, serving: Serving) -> Iterator[Serving]:
    """Talaria, which routes all that comes to a folder and to the Orthanc."""
    (tmp_path / "out").mkdir()
    serving.apply(
        f"""
        settings: {{series_quiet: 2s}}
        targets:
          share: {{kind: folder, path: {tmp_path}/out}}
          archive: {{kind: dicom, host: 127.0.0.1, port: {archive.dicom_port}, called_ae: ORTHANC}}
        rules:
          all: {{when: "True", action: route, send: [share, archive]}}
        """
    )
    serving.start()
    yield serving
    assert 0 == serving.stop()


def sources(tmp_path: Path) -> list[Path]:
    """The scanner files where they are given; else synthetic studies and the files that pydicom ships."""
    root = os.environ.get("TALARIA_TEST_DATA")
    if root:
        return instances([Path(root)])
    made = [*synthetic_ct(tmp_path / "ct", seed=1, slices=8).paths, *synthetic_mr(tmp_path / "mr", seed=2).paths]
    names = ("CT_small.dcm", "JPEG2000.dcm", "MR_small_bigendian.dcm")
    return instances([*made, *(Path(DATA_ROOT, "test_files", name) for name in names)])


def instances(paths: list[Path]) -> list[Path]:
    """Files that hold an instance, each SOP Instance UID once."""
    found = {item.meta.sop_instance_uid: item.path for item in find_instances(paths) if isinstance(item, Found)}
    return list(found.values())


def arrived(serving: Serving) -> dict[str, bytes]:
    """Wait until all is delivered; what the folder has."""
    until(serving.is_idle, seconds=120, what="the deliveries")
    assert [] == serving.json("jobs", "list", "--state", "failed")["items"]
    return files_of(serving.folder / "out")


@ON_BOTH
def test_scanner_files_sent_by_ourselves_arrive_everywhere(tmp_path: Path, routing: Serving, archive: Orthanc) -> None:
    """
    Sent by `talaria send`, each data set in the folder is its source's, byte for byte, and the archive has them all.
    """
    expected = data_sets(sources(tmp_path))
    tally = routing.send(*sources(tmp_path))

    assert (len(expected), 0) == (tally["stored"], tally["failed"])
    assert expected == arrived(routing)
    assert pictures(path.read_bytes() for path in sources(tmp_path)) == pictures(archive.files().values())


def pictures(files: Iterable[bytes]) -> dict[str, tuple[str, bytes]]:
    """
    Transfer syntax and pixel data by SOP Instance UID.

    Orthanc writes some data sets anew, by DCMTK, so that not every byte of its files is the sender's.
    """
    found = {}
    for file in files:
        dataset = dcmread(io.BytesIO(file))
        found[str(dataset.SOPInstanceUID)] = (str(dataset.file_meta.TransferSyntaxUID), dataset.get("PixelData", b""))
    return found


@ON_BOTH
def test_scanner_files_sent_by_dcmsend_arrive_as_at_storescp(tmp_path: Path, routing: Serving) -> None:
    """
    Sent by DCMTK, which re-encodes some data sets itself, each is what DCMTK's own receiver gets of the same command.
    """
    paths = [str(path) for path in sources(tmp_path)]
    with storescp(tmp_path / "peer") as port:
        dcmsend(port, paths)
    expected = data_sets((tmp_path / "peer" / "received").iterdir())
    dcmsend(routing.dicom_port, paths)

    assert expected
    assert expected == arrived(routing)


def dcmsend(port: int, paths: list[str]) -> None:
    command = ["dcmsend", "--no-halt", "--decompress-never", "-aec", "TALARIA", "127.0.0.1", str(port), *paths]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert 0 == done.returncode, done.stderr

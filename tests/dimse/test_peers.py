"""DCMTK and Orthanc as peers, both ways; every data set byte for byte."""

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, find_instances
from talaria.dimse.negotiation import Context, by_association
from talaria.dimse.scp import Listener
from talaria.dimse.scu import Peer, Sender
from talaria.model.dicom import AETitle
from wire import MemorySink, data_set_of, digest, real_instances, wait_until

pytestmark = pytest.mark.server

Listen = Callable[..., Listener]

#: Without it DCMTK waits 44 ms for each image.
ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(*command: str, port: int, folder: Path) -> Iterator[None]:
    """A server as a child, up when its port answers."""
    with (folder / "server.log").open("wb") as log:
        child = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: child.poll() is not None or answers(port), seconds=30)
        assert child.poll() is None, (folder / "server.log").read_text()
        yield
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:  # Orthanc takes its time
            child.kill()
            child.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver, which keeps the bytes as they came, in every transfer syntax."""
    port = free_port()
    received = folder / "received"
    received.mkdir()
    with running("storescp", "+B", "+xa", "-od", str(received), str(port), port=port, folder=folder):
        yield port


def run(*command: str) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr


def send(port: int, found: Sequence[Found], *, called: str = "ANY") -> list[Found]:
    """Send everything; what was answered as stored."""
    stored: list[Found] = []
    peer = Peer(host="127.0.0.1", port=port, called_ae=AETitle(called), calling_ae=AETitle("TALARIA"))
    for part in by_association(found, lambda item: item.context):
        with Sender(peer, list({item.context: None for item in part})) as sender:
            for item in part:
                result = sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid)
                stored += [item] if result.meaning is Meaning.STORED else []
    assert len(stored) > 0.9 * len(found)
    return stored


def digests(found: Sequence[Found]) -> dict[str, str]:
    return {item.meta.sop_instance_uid: digest(data_set_of(item.path)) for item in found}


def received_in(folder: Path) -> dict[str, str]:
    return digests([item for item in find_instances([folder / "received"]) if isinstance(item, Found)])


def test_echoscu_is_answered(listen: Listen) -> None:
    """DCMTK's C-ECHO."""
    run("echoscu", "127.0.0.1", str(listen().port), "-aec", "TALARIA")


@pytest.mark.parametrize("command", [("dcmsend", "-nh"), ("storescu", "-nh")])
def test_dcmtk_stores_here_what_it_stores_at_its_own(
    sink: MemorySink,
    listen: Listen,
    logged: list[MutableMapping[str, object]],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    """What dcmsend and storescu send is stored byte for byte as storescp gets it from the same command."""
    folder = tmp_path / "sent"
    folder.mkdir()
    for number, item in enumerate(regular_instances()):
        if command[0] == "dcmsend" or item.context in PROPOSED:
            (folder / f"{number}.dcm").symlink_to(item.path)
    run(*command, "+sd", "127.0.0.1", str(listen().port), str(folder))
    with storescp(tmp_path) as port:
        run(*command, "+sd", "127.0.0.1", str(port), str(folder))

    here = {item.request.sop_instance_uid: digest(item.data) for item in sink.stored}
    refused = [line for line in logged if line["event"] == "instance refused"]  # not of their context's SOP class
    there = received_in(tmp_path)
    assert here == {uid: found for uid, found in there.items() if uid in here}
    assert len(list(folder.iterdir())) - len(refused) == len(here) > 5
    assert len(there) - len(refused) == len(here)


#: What storescu proposes without being told more.
PROPOSED = frozenset(
    Context(f"1.2.840.10008.5.1.4.1.1.{sop_class}", f"1.2.840.10008.1.2{syntax}")
    for sop_class in (2, 4)
    for syntax in ("", ".1")
)


def regular_instances() -> list[Found]:
    """Those that keep to the standard where DCMTK and Orthanc insist on it."""
    return [item for item in real_instances() if _is_regular(item)]


def _is_regular(item: Found) -> bool:
    """Even length, all identifiers there and as the file meta has them, the picture not cut off."""
    if len(data_set_of(item.path)) % 2:
        return False
    found = dcmread(item.path)
    tags = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
    if not all(found.get(tag) for tag in tags) or "PatientID" not in found:
        return False
    named = (found.SOPClassUID, found.SOPInstanceUID) == (item.meta.sop_class_uid, item.meta.sop_instance_uid)
    return named and (
        found.file_meta.TransferSyntaxUID.is_encapsulated or len(found.get("PixelData", b"")) >= _size(found)
    )


def _size(found: Dataset) -> int:
    """Of the picture, in bytes; 0 where there is none."""
    if "PixelData" not in found:
        return 0
    pixels = found.Rows * found.Columns * found.SamplesPerPixel * int(found.get("NumberOfFrames") or 1)
    return int(pixels * found.BitsAllocated // 8)


def test_storescp_gets_every_byte(tmp_path: Path) -> None:
    """Real files in all their transfer syntaxes, from our sender."""
    found = regular_instances()
    with storescp(tmp_path) as port:
        stored = send(port, found)

    assert digests(stored) == received_in(tmp_path)
    assert len(found) > 20


def test_orthanc_gets_every_instance(tmp_path: Path) -> None:
    """The same; Orthanc gives back the same data sets, but for a few that it writes anew as it receives them."""
    dicom, http = free_port(), free_port()
    settings = {
        "Name": "TEST",
        "DicomPort": dicom,
        "HttpPort": http,
        "DicomAet": "ORTHANC",
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "AuthenticationEnabled": False,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": True,
        "Plugins": [],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    found = regular_instances()
    with running("Orthanc", str(tmp_path / "orthanc.json"), port=dicom, folder=tmp_path):
        wait_until(lambda: answers(http))
        stored = send(dicom, found, called="ORTHANC")
        received = tmp_path / "received"
        received.mkdir()
        for name in _asked(http, "/instances"):
            (received / f"{name}.dcm").write_bytes(_fetched(http, f"/instances/{name}/file"))

    sent, found = digests(stored), received_in(tmp_path)
    assert sent.keys() == found.keys()
    assert 0.8 * len(sent) < len(sent.items() & found.items())


def _fetched(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return bytes(answer.read())


def _asked(port: int, path: str) -> list[str]:
    return [str(name) for name in json.loads(_fetched(port, path))]

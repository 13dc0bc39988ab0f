"""Bad input of every kind: each gets its status or an error that names what and where, and the service goes on."""

import os
import socket
from pathlib import Path

import pytest

from orchestra import data_sets, files_of
from serving import Serving, free_port, until
from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, look
from talaria.dimse.scu import Peer, Sender
from talaria.model.dicom import AETitle
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server


@pytest.fixture
def routing(tmp_path: Path, serving: Serving) -> Serving:
    """Talaria, running, with a folder as its target."""
    (tmp_path / "out").mkdir()
    serving.apply(rules(tmp_path))
    serving.start()
    return serving


def rules(folder: Path, extra: str = "", send: str = "[share]") -> str:
    return f"""\
settings: {{series_quiet: 1s}}
targets:
  share: {{kind: folder, path: {folder}/out}}
{extra}
rules:
  all: {{when: "True", action: route, send: {send}}}
"""


def proves_alive(serving: Serving, folder: Path, seed: int) -> None:
    """C-ECHO is answered, and a series sent now is delivered."""
    source = synthetic_ct(folder / f"alive-{seed}", seed=seed, slices=2, side=64)
    serving.run("echo", "--to", f"127.0.0.1:{serving.dicom_port}", "--called", "TALARIA")
    serving.send(*source.paths)
    expected = data_sets(source.paths)
    until(lambda: expected.items() <= files_of(folder / "out").items(), seconds=30, what="delivery after bad input")


@pytest.mark.parametrize(
    "said",
    [os.urandom(4096), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes.fromhex("1603010200010001fc0303") + bytes(500)],
    ids=["random bytes", "HTTP", "TLS hello"],
)  # fmt: skip
def test_strange_bytes_on_the_dicom_port(tmp_path: Path, routing: Serving, said: bytes) -> None:
    """
    What is no DICOM is shut out, and the next association is served.
    """
    with socket.create_connection(("127.0.0.1", routing.dicom_port), timeout=15) as peer:
        peer.sendall(said)
        rest = b""
        while chunk := peer.recv(4096):
            rest += chunk

    assert rest in {b"", b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x01"} or rest[:1] in {b"\x03", b"\x07"}
    proves_alive(routing, tmp_path, seed=1)


def test_truncated_data_set_is_refused(tmp_path: Path, routing: Serving) -> None:
    """
    A data set that was cut off is answered C000 and leaves nothing; the others of its association are stored.
    """
    whole = synthetic_ct(tmp_path / "ct", seed=3, slices=3, side=64).paths
    data = whole[1].read_bytes()
    whole[1].write_bytes(data[: len(data) - 1001])
    found = [item for item in map(look, whole) if isinstance(item, Found)]
    peer = Peer(host="127.0.0.1", port=routing.dicom_port, called_ae=AETitle("TALARIA"), calling_ae=AETitle("CT1"))
    with Sender(peer, [found[0].context]) as sender:
        statuses = [
            sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid).status
            for item in found
        ]
    expected = data_sets([whole[0], whole[2]])
    until(lambda: expected == files_of(tmp_path / "out"), seconds=30, what="delivery of the whole ones")

    assert [0x0000, 0xC000, 0x0000] == statuses
    assert [] == list((tmp_path / "home" / "spool" / "tmp").iterdir())


def test_uid_with_a_path_in_it_is_refused(tmp_path: Path, routing: Serving) -> None:
    """
    A SOP Instance UID that is a path is answered C000, and no file of such a name comes to be.
    """
    item = look(synthetic_ct(tmp_path / "ct", seed=4, slices=1, side=64).paths[0])
    assert isinstance(item, Found)
    peer = Peer(host="127.0.0.1", port=routing.dicom_port, called_ae=AETitle("TALARIA"), calling_ae=AETitle("CT1"))
    with Sender(peer, [item.context]) as sender:
        result = sender.store(item.path, context=item.context, sop_instance_uid="../../evil/1.2")

    assert (0xC000, Meaning.REFUSED) == (result.status, result.meaning)
    assert [] == list(tmp_path.rglob("*evil*"))
    proves_alive(routing, tmp_path, seed=5)


def test_file_that_is_not_dicom_is_skipped_and_counted(tmp_path: Path, routing: Serving) -> None:
    """
    `talaria send` over a folder with other files in it sends the instances, and counts the rest.
    """
    folder = tmp_path / "mixed"
    paths = synthetic_ct(folder, seed=6, slices=2, side=64).paths
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").touch()

    assert {"stored": 2, "failed": 0, "skipped": 2}.items() <= routing.send(folder).items()
    until(lambda: data_sets(paths) == files_of(tmp_path / "out"), seconds=30, what="delivery")


def test_wrong_rulebook_is_refused_and_the_running_one_stays(tmp_path: Path, routing: Serving) -> None:
    """
    An unknown key and a misspelt tag are named with line and place; what runs goes on.
    """
    unknown = routing.run("apply", "-", text="rules: {}\ntargetz: {}\n", code=1)
    typo = rules(tmp_path).replace('"True"', "tags.SeriesDescripton == 'X'")
    misspelt = routing.run("apply", "-", text=typo, code=1)

    assert "talaria: standard input: line 2: targetz: unknown section; did you mean 'targets'?\n" == unknown
    assert "line 6: rules.all.when: no DICOM element is called 'SeriesDescripton'" in misspelt
    assert "did you mean SeriesDescription?" in misspelt
    assert "^" in misspelt.splitlines()[-1]
    proves_alive(routing, tmp_path, seed=8)


def test_target_that_refuses_delays_no_other(tmp_path: Path, routing: Serving) -> None:
    """
    Nobody listens at one target: its delivery waits with the reason, the other target gets everything.
    """
    port = free_port()
    extra = f"  pacs: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: PACS}}"
    routing.apply(rules(tmp_path, extra=extra, send="[pacs, share]"))
    until(lambda: routing.api("/api/v1/studies") is not None, seconds=5, what="the API")
    source = synthetic_ct(tmp_path / "ct", seed=9, slices=2, side=64)
    routing.send(*source.paths)
    until(lambda: data_sets(source.paths) == files_of(tmp_path / "out"), seconds=30, what="the good target")
    waiting = until(
        lambda: routing.json("jobs", "list", "--target", "pacs", "--state", "deferred")["items"], seconds=30,
        what="the bad target's job",
    )  # fmt: skip

    assert f"127.0.0.1:{port}" in waiting[0]["reason"]

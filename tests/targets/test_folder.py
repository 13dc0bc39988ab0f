"""Delivery into a folder: whole or not there, once, and nowhere else."""

import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom import dcmread

from talaria.model.dicom import Tags
from talaria.model.errors import NoRoom, Permanent, Transient
from talaria.model.extensions import Delivery, Standing, Target
from talaria.targets.folder import Folder
from talaria.targets.layout import Part
from talaria.testing import TargetContract, delivery_of, synthetic_ct


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The target's folder."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    """Five small CT slices."""
    return delivery_of(synthetic_ct(tmp_path / "spool", slices=5, side=32).paths)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    yield from _mounted(tmp_path, "size=1m")


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for six files and folders."""
    yield from _mounted(tmp_path, "size=16m,nr_inodes=6")


def _mounted(tmp_path: Path, options: str) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def names(folder: Path) -> set[str]:
    """Everything below *folder*."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def expected(delivery: Delivery, *above: str) -> set[str]:
    """What a delivery leaves."""
    place = Path(*above, delivery.id)
    folders = {str(parent) for parent in (place, *place.parents)} - {"."}
    files = {f"{p.series_instance_uid}#{p.sop_instance_uid}.dcm" for p in delivery.parcels} | {".complete"}
    return folders | {str(place / name) for name in files}


class TestContract(TargetContract):
    """
    A folder does what every target must.
    """

    def target(self, folder: Path) -> Target:
        return Folder(path=folder)

    def arrived(self, folder: Path) -> Counter[str]:
        return Counter(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in folder.rglob("*.dcm"))

    def gone(self, folder: Path) -> Target:
        return Folder(path=folder / "share")

    def full(self, folder: Path) -> Target:
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
        self.disk = disk
        return Folder(path=disk)

    @pytest.mark.server
    def test_far_end_full_is_transient(self, tmp_path: Path) -> None:
        try:
            super().test_far_end_full_is_transient(tmp_path)
        finally:
            subprocess.run(["umount", self.disk], check=True)


def test_files_are_delivered_as_they_are(out: Path, delivery: Delivery) -> None:
    """
    Each file has the bytes of the spool, stands under its UIDs, and `.complete` stands beside them.
    """
    list(Folder(path=out).deliver(delivery))

    assert expected(delivery) == names(out)
    for parcel in delivery.parcels:
        path = out / delivery.id / f"{parcel.series_instance_uid}#{parcel.sop_instance_uid}.dcm"
        assert parcel.path.read_bytes() == path.read_bytes()
        assert parcel.path.stat().st_ino != path.stat().st_ino


def test_layout_puts_folders_above(out: Path, delivery: Delivery) -> None:
    """
    The folders of the layout stand between the path and the delivery.
    """
    delivery = replace(delivery, tags=Tags({"PatientID": "../../x", "Modality": "CT"}))

    list(Folder(path=out, layout="{SenderAET}/{Modality}/{PatientID}").deliver(delivery))

    assert expected(delivery, "SYNTHETIC", "CT", "_._.._x") == names(out)


def test_second_delivery_writes_nothing(out: Path, delivery: Delivery) -> None:
    """
    The same delivery again leaves every file untouched.
    """
    list(Folder(path=out).deliver(delivery))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    outcomes = list(Folder(path=out).deliver(delivery))

    assert [Standing.SENT] * 5 == [outcome.standing for outcome in outcomes]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_stopped_delivery_is_not_complete(out: Path, tmp_path: Path) -> None:
    """
    A delivery stopped in the middle has no `.complete`; what was told as sent is there; the next attempt ends it.
    """
    delivery = delivery_of(synthetic_ct(tmp_path / "many", slices=100, side=16).paths)
    told = set()
    with closing(Folder(path=out).deliver(delivery)) as outcomes:
        told = {next(outcomes).instance_id for _ in range(40)}

    there = {path.name.partition("#")[2] for path in out.rglob("*.dcm")}
    assert {f"{p.sop_instance_uid}.dcm" for p in delivery.parcels if p.instance_id in told} <= there
    assert len(there) < 100
    assert not (out / delivery.id / ".complete").exists()

    rest = tuple(parcel for parcel in delivery.parcels if parcel.instance_id not in told)
    list(Folder(path=out).deliver(replace(delivery, parcels=rest)))

    assert expected(delivery) == names(out)


def test_last_instance_is_told_once_complete(out: Path, delivery: Delivery) -> None:
    """
    A dispatcher killed after the last outcome was written down leaves nothing undone.
    """
    outcomes = Folder(path=out).deliver(delivery)

    for _ in delivery.parcels:
        next(outcomes)

    assert (out / delivery.id / ".complete").exists()


def test_instances_taken_away_are_told(out: Path, delivery: Delivery) -> None:
    """
    When instances of an earlier attempt are gone, the delivery is not called complete.
    """
    with pytest.raises(Permanent) as caught:
        list(Folder(path=out).deliver(replace(delivery, parcels=delivery.parcels[:3])))

    assert (
        f"folder '{out}': 3 of 5 instances stand in delivery {delivery.id}: the others were refused or taken away "
        "before it was complete; restart the delivery"
    ) == str(caught.value)
    assert not (out / delivery.id / ".complete").exists()


def test_nothing_left_to_send_is_still_verified_and_sealed(out: Path, delivery: Delivery) -> None:
    """
    An attempt that is handed nothing more writes `.complete` where all stands there, and refuses where not.
    """
    nothing = replace(delivery, parcels=())
    list(Folder(path=out).deliver(delivery))
    (out / delivery.id / ".complete").unlink()

    assert [] == list(Folder(path=out).deliver(nothing))
    assert expected(delivery) == names(out)
    next((out / delivery.id).glob("*#*.dcm")).unlink()
    with pytest.raises(Permanent, match="4 of 5 instances stand"):
        list(Folder(path=out).deliver(nothing))


def test_torn_file_is_replaced(out: Path, delivery: Delivery) -> None:
    """
    A file of the right name with other content, as a power cut may leave it, is written anew; meanwhile the
    delivery is not complete.
    """
    list(Folder(path=out).deliver(delivery))
    files = sorted(out.rglob("*.dcm"))
    files[0].write_bytes(b"torn")
    files[1].write_bytes(bytes(files[1].stat().st_size))

    list(Folder(path=out).deliver(delivery))

    sources = {p.sop_instance_uid: p.path.read_bytes() for p in delivery.parcels}
    for path in files:
        assert sources[path.stem.partition("#")[2]] == path.read_bytes()
    assert expected(delivery) == names(out)


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "removed", "link", "fifo"])
def test_damaged_instance_fails_alone(out: Path, delivery: Delivery, harm: str) -> None:
    """
    An instance whose stored bytes are not those that arrived is not sent; the others are; nothing is complete.
    """
    path = delivery.parcels[2].path
    content = path.read_bytes()
    path.unlink()
    if harm in {"flipped", "cut", "emptied"}:
        path.write_bytes({"flipped": content[:-1] + b"\xff", "cut": content[:-2], "emptied": b""}[harm])
    elif harm == "link":
        path.symlink_to("/etc/passwd")
    elif harm == "fifo":
        os.mkfifo(path)

    outcomes = list(Folder(path=out).deliver(delivery))

    assert [s if n != 2 else Standing.FAILED for n, s in enumerate([Standing.SENT] * 5)] == [
        outcome.standing for outcome in outcomes
    ]
    assert "its stored file" in outcomes[2].detail
    assert 4 == len(list(out.rglob("*.dcm")))
    assert [] == list(out.rglob(".*"))


def test_spool_away_is_transient(out: Path, delivery: Delivery) -> None:
    """
    Where the spool itself is missing nothing has failed for good.
    """
    delivery.parcels[0].path.parent.rename(out.parent / "elsewhere")

    with pytest.raises(Transient, match="the spool is missing; is its disk mounted"):
        list(Folder(path=out).deliver(delivery))


def test_same_uids_with_other_content_fail(out: Path, delivery: Delivery) -> None:
    """
    Two instances of one delivery cannot have one name: the second fails, the first stands.
    """
    first, second = delivery.parcels[:2]
    twin = replace(second, sop_instance_uid=first.sop_instance_uid)

    outcomes = list(Folder(path=out).deliver(replace(delivery, parcels=(first, twin), total=2)))

    assert [Standing.SENT, Standing.FAILED] == [outcome.standing for outcome in outcomes]
    assert "another instance of this delivery has the same UIDs and other content" == outcomes[1].detail


def test_results_travel_as_the_settings_say(out: Path, delivery: Delivery, tmp_path: Path) -> None:
    """
    `include` and `exclude` decide what is delivered besides the instances.
    """
    extras = {}
    for name in ("result.json", "task.json", "1#2.tags", "report.pdf", "log.txt"):
        extras[name] = tmp_path / name
        extras[name].write_text(name)
    extras["deep/er.txt"] = extras["log.txt"]
    delivery = replace(delivery, extras=extras)

    list(Folder(path=out, exclude=("*.pdf",)).deliver(delivery))

    folder = out / delivery.id
    assert {"result.json", "log.txt", ".complete", "deep"} == {p.name for p in folder.iterdir() if p.suffix != ".dcm"}
    assert "log.txt" == (folder / "deep" / "er.txt").read_text()

    everything = Folder(path=out, include=tuple(Part))
    list(everything.deliver(delivery))
    list(everything.deliver(delivery))

    assert {"result.json", "task.json", "1#2.tags", "report.pdf", "log.txt"} <= {p.name for p in folder.iterdir()}
    assert (folder / ".complete").exists()


def test_left_out_instances_count_as_delivered(out: Path, delivery: Delivery) -> None:
    """
    A target that takes results only is complete without an instance.
    """
    outcomes = list(Folder(path=out, include=(Part.RESULTS,)).deliver(delivery))

    assert ["left out by the settings"] * 5 == [outcome.detail for outcome in outcomes]
    assert {delivery.id, f"{delivery.id}/.complete"} == names(out)


def test_result_that_is_a_link_is_refused(out: Path, delivery: Delivery, tmp_path: Path) -> None:
    """
    A module cannot make us deliver a file that is not its own.
    """
    (tmp_path / "link").symlink_to("/etc/passwd")

    with pytest.raises(Permanent, match="a result cannot be delivered: its stored file cannot be opened"):
        list(Folder(path=out).deliver(replace(delivery, extras={"link": tmp_path / "link"})))

    assert not (out / delivery.id / ".complete").exists()


def test_link_in_place_of_a_folder_is_not_followed(out: Path, delivery: Delivery, tmp_path: Path) -> None:
    """
    Whoever can write at the far end cannot lead a delivery elsewhere.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / "CT").symlink_to(elsewhere)

    with pytest.raises(Permanent) as caught:
        list(Folder(path=out, layout="{Modality}").deliver(delivery))

    assert f"folder '{out}': a file or link stands where a folder of the delivery belongs; remove it" == str(
        caught.value
    )
    assert [] == list(elsewhere.iterdir())


def test_link_in_place_of_a_file_is_replaced(out: Path, delivery: Delivery, tmp_path: Path) -> None:
    """
    A link under a name of ours is replaced, not written through; so is what looks like a half-written file.
    """
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    folder = out / delivery.id
    folder.mkdir()
    parcel = delivery.parcels[0]
    (folder / f"{parcel.series_instance_uid}#{parcel.sop_instance_uid}.dcm").symlink_to(victim)
    (folder / ".talaria-0123456789abcdef.part").symlink_to(victim)

    list(Folder(path=out).deliver(delivery))

    assert "keep me" == victim.read_text()
    assert expected(delivery) == names(out)
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_link_in_place_of_the_mark_is_refused(out: Path, delivery: Delivery, tmp_path: Path) -> None:
    """
    `.complete` is not made through a link.
    """
    list(Folder(path=out).deliver(delivery))
    mark = out / delivery.id / ".complete"
    mark.unlink()
    mark.symlink_to(tmp_path / "made")

    with pytest.raises(Permanent, match="a link stands where"):
        list(Folder(path=out).deliver(delivery))

    assert not (tmp_path / "made").exists()


def test_path_is_never_made(tmp_path: Path, delivery: Delivery) -> None:
    """
    A path that is not there may be a share that is not mounted: it is tried again, and not made.
    """
    with pytest.raises(Transient) as caught:
        list(Folder(path=tmp_path / "share").deliver(delivery))

    assert f"folder '{tmp_path / 'share'}': is missing or went away meanwhile; is the share mounted?" == str(
        caught.value
    )
    assert not (tmp_path / "share").exists()


def test_path_must_be_absolute() -> None:
    """
    A relative path would depend on where the service was started.
    """
    with pytest.raises(ValidationError, match="path: 'out' is not absolute; write it from the root on"):
        Folder(path=Path("out"))


def test_unmounted_share_can_be_told_by_its_mount() -> None:
    """
    With `mounted`, a folder of the root file system, as that of a share not mounted, is not written.
    """
    with pytest.raises(Transient) as caught:
        Folder(path=Path("/"), mounted=True).check()

    assert "folder '/': is not on a mounted share; mount it" == str(caught.value)


def test_errors_name_no_patient(out: Path, delivery: Delivery) -> None:
    """
    The folder of a patient is not told when it is in the way.
    """
    (out / "SYN000000").write_text("a file")

    with pytest.raises(Permanent) as caught:
        list(Folder(path=out, layout="{PatientID}").deliver(delivery))

    assert "SYN000000" not in f"{caught.value}{caught.value!r}"


def test_check_finds_a_folder_well(out: Path) -> None:
    """
    The check tells what it tried.
    """
    findings = Folder(path=out).check()

    assert f"{out} is there and can be written" == findings[0].text
    assert findings[1].text.endswith("GB free")
    assert [True, True] == [finding.ok for finding in findings]


KILLED = """
import os, signal, sys
from pathlib import Path
from talaria.targets import folder
from talaria.testing import delivery_of

calls, real = 0, folder.os.__dict__[sys.argv[3]]
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(os, sys.argv[3], counted)
list(folder.Folder(path=Path(sys.argv[1])).deliver(delivery_of(sorted(Path(sys.argv[2]).iterdir()))))
"""


@pytest.mark.parametrize(
    ("call", "nth"),
    [("fsync", 1), ("fsync", 3), ("rename", 1), ("rename", 5), ("write", 2), ("write", 5), ("fsync", 8)],
)
def test_killed_delivery_is_taken_up(out: Path, delivery: Delivery, call: str, nth: int) -> None:
    """
    Killed at any step, no half file has a final name and nothing is complete; the next attempt makes it whole and
    clears away what was left.
    """
    spool = delivery.parcels[0].path.parent
    killed = subprocess.run([sys.executable, "-c", KILLED, out, spool, call, str(nth)], check=False)

    assert -signal.SIGKILL == killed.returncode
    sources = {p.sop_instance_uid: hashlib.sha256(p.path.read_bytes()).digest() for p in delivery.parcels}
    for path in out.rglob("*.dcm"):
        assert sources[path.stem.partition("#")[2]] == hashlib.sha256(path.read_bytes()).digest()
    assert [] == list(out.rglob(".complete"))

    list(Folder(path=out).deliver(delivery))

    assert expected(delivery) == names(out)


@pytest.mark.server
def test_full_disk_is_no_room_and_passes(small_disk: Path, tmp_path: Path) -> None:
    """
    A full disk leaves no half file; once there is room the delivery goes on by itself.
    """
    delivery = delivery_of(synthetic_ct(tmp_path / "spool", slices=4).paths)

    with pytest.raises(NoRoom) as caught:
        list(Folder(path=small_disk).deliver(delivery))

    assert f"folder '{small_disk}': no room left; make room or enlarge it" == str(caught.value)
    assert [] == list(small_disk.rglob(".*"))
    assert not Folder(path=small_disk).check()[1].ok

    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    list(Folder(path=small_disk).deliver(delivery))

    assert expected(delivery) == names(small_disk)


@pytest.mark.server
def test_no_inodes_is_no_room(few_inodes: Path, delivery: Delivery) -> None:
    """
    A disk without inodes is as full as one without blocks.
    """
    with pytest.raises(NoRoom):
        list(Folder(path=few_inodes).deliver(delivery))

    assert [] == list(few_inodes.rglob(".complete"))


@pytest.mark.server
def test_read_only_disk_is_transient(small_disk: Path, delivery: Delivery) -> None:
    """
    A share that was mounted read-only is tried again, with what to do.
    """
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with pytest.raises(Transient) as caught:
        list(Folder(path=small_disk).deliver(delivery))

    assert f"folder '{small_disk}': is read-only; mount it for writing" == str(caught.value)


@pytest.mark.server
def test_mounted_share_is_accepted(small_disk: Path, delivery: Delivery) -> None:
    """
    With `mounted`, a share that is mounted is written.
    """
    list(Folder(path=small_disk, mounted=True).deliver(delivery))

    assert expected(delivery) == names(small_disk)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from talaria.model.errors import Transient
from talaria.targets.folder import Folder
from talaria.testing import delivery_of

delivery = delivery_of(sorted(Path(sys.argv[2]).iterdir()))
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    list(Folder(path=Path(sys.argv[1])).deliver(delivery))
except Transient as error:
    print(error)
"""


def test_refused_permission_is_transient(out: Path, delivery: Delivery) -> None:
    """
    A folder that is not ours to write is tried again, with what to do.
    """
    out.chmod(0o555)
    for parent in out.parents[:3]:
        parent.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, out, delivery.parcels[0].path.parent],
        check=True,
        capture_output=True,
        text=True,
    )

    assert f"folder '{out}': no permission to write; grant it to the user that runs this service\n" == done.stdout

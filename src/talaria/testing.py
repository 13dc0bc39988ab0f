"""For tests of Talaria and of plugs: a clock you move, synthetic studies, a failing target, contract tests."""

import hashlib
import math
import random
import struct
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from talaria.model.dicom import Origin, Tags
from talaria.model.errors import Congested, NoRoom, Permanent, TalariaError, Transient
from talaria.model.extensions import Delivery, Finding, Findings, Outcome, Parcel, Standing, Target
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.model.ulid import ulid


class MovedClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """Its time; aware, UTC."""
        return self._now

    def move(self, by: timedelta) -> datetime:
        """Move it, backwards too, and tell its time."""
        self._now += by
        return self._now


@dataclass(frozen=True, kw_only=True)
class SyntheticStudy:
    """A study that was made up, as files of one series."""

    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    paths: tuple[Path, ...]
    """One Part 10 file for each slice, from feet to head."""


_NAMES = ("Synthetic^Ada", "Synthetic^Bruno", "Synthetic^Carla", "Synthetic^Dario", "Synthetic^Enno", "Synthetic^Fe")
_NAMES_NON_ASCII = ("Prüfkörper^Žofie", "Synthetic^Tarō=合成^太郎=ごうせい^たろう", "Συνθετικός^Ωμέγα")
_NAMESPACE = uuid.UUID("5a1e3c52-3d0c-5f0e-8d1b-6a7c0b1f9e42")


def synthetic_ct(
    folder: Path, *, slices: int = 20, seed: int = 0, side: int = 512, non_ascii: bool = False
) -> SyntheticStudy:
    """
    Write a CT study of one series: an elliptical phantom in air with noise.

    Args:
        folder: Where the files go; made if it is not there.
        slices: How many instances.
        seed: Equal seeds give equal bytes, other seeds other patients and UIDs.
        side: Rows and columns, 16 bit each; the picture is (rows, columns), stored values, -1024 HU is 0.
        non_ascii: Give the patient a name that ASCII cannot write (ISO_IR 192).

    Source: PS3.3 A.3 (CT Image IOD).
    """
    series = _series("CT", CTImageStorage, seed=seed, side=side, non_ascii=non_ascii)
    series.StudyDescription = "CHEST SYNTHETIC"
    series.SeriesDescription = "AX CHEST 3.0"
    series.BodyPartExamined = "CHEST"
    series.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    series.RescaleIntercept, series.RescaleSlope, series.RescaleType = "-1024", "1", "HU"
    series.KVP, series.ConvolutionKernel, series.GantryDetectorTilt = "120", "SOFT", "0"
    series.WindowCenter, series.WindowWidth = "40", "400"
    return _written(series, folder, slices=slices, spacing_mm=3.0, values=_Values(air=24, body=1064, bone=1724))


def synthetic_mr(
    folder: Path, *, slices: int = 20, seed: int = 0, side: int = 256, non_ascii: bool = False
) -> SyntheticStudy:
    """
    Write an MR study of one series; arguments as of `synthetic_ct`.

    Source: PS3.3 A.4 (MR Image IOD).
    """
    series = _series("MR", MRImageStorage, seed=seed, side=side, non_ascii=non_ascii)
    series.StudyDescription = "HEAD SYNTHETIC"
    series.SeriesDescription = "AX T1 SE"
    series.BodyPartExamined = "HEAD"
    series.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    series.ScanningSequence, series.SequenceVariant, series.ScanOptions = "SE", "NONE", ""
    series.MRAcquisitionType, series.MagneticFieldStrength = "2D", "3"
    series.RepetitionTime, series.EchoTime, series.EchoTrainLength = "500", "12", "1"
    return _written(series, folder, slices=slices, spacing_mm=5.0, values=_Values(air=8, body=600, bone=180))


def _uid(*parts: object) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, ' '.join(map(str, parts))).int}"


def _series(modality: str, sop_class: str, *, seed: int, side: int, non_ascii: bool) -> Dataset:
    """What all instances of a series have in common."""
    names = _NAMES_NON_ASCII if non_ascii else _NAMES
    day = f"202501{seed % 28 + 1:02d}"
    series = Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    series.SOPClassUID, series.Modality = sop_class, modality
    series.PatientName, series.PatientID = names[seed % len(names)], f"SYN{seed:06d}"
    series.PatientBirthDate, series.PatientSex = "19700101", "O"
    series.StudyInstanceUID, series.SeriesInstanceUID = _uid(modality, seed, "study"), _uid(modality, seed, "series")
    series.FrameOfReferenceUID, series.PositionReferenceIndicator = _uid(modality, seed, "frame"), ""
    series.StudyDate = series.SeriesDate = series.AcquisitionDate = series.ContentDate = day
    series.StudyTime = series.SeriesTime = series.AcquisitionTime = series.ContentTime = "081500"
    series.StudyID, series.AccessionNumber, series.ReferringPhysicianName = f"S{seed}", f"SYNACC{seed:06d}", ""
    series.SeriesNumber, series.AcquisitionNumber = "1", "1"
    series.Manufacturer, series.ManufacturerModelName, series.StationName = "Talaria", "Phantom", "SYNTHETIC"
    series.InstitutionName, series.DeviceSerialNumber, series.SoftwareVersions = "Synthetic Hospital", "0", "1"
    series.PatientPosition, series.ImageOrientationPatient = "HFS", ["1", "0", "0", "0", "1", "0"]
    series.SamplesPerPixel, series.PhotometricInterpretation = 1, "MONOCHROME2"
    series.Rows, series.Columns = side, side
    series.BitsAllocated, series.BitsStored, series.HighBit, series.PixelRepresentation = 16, 12, 11, 0
    return series


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Stored values of a phantom's parts."""

    air: int
    body: int
    bone: int


def _written(series: Dataset, folder: Path, *, slices: int, spacing_mm: float, values: _Values) -> SyntheticStudy:
    folder.mkdir(parents=True, exist_ok=True)
    side = int(series.Rows)
    series.PixelSpacing = [f"{360 / side:.6f}"] * 2
    series.SliceThickness = f"{spacing_mm:g}"
    noise = _noise(side, seed=str(series.SeriesInstanceUID))
    paths = tuple(folder / f"{series.Modality}{number:05d}.dcm" for number in range(1, slices + 1))
    for number, path in enumerate(paths, start=1):
        series.SOPInstanceUID = _uid(series.SeriesInstanceUID, number)
        series.InstanceNumber, series.SliceLocation = str(number), f"{number * spacing_mm:g}"
        series.ImagePositionPatient = ["-180", "-180", f"{number * spacing_mm:g}"]
        series.add_new(0x7FE00010, "OW", _picture(side, number / (slices + 1), values, noise))
        _write(series, path)
    return SyntheticStudy(
        study_instance_uid=str(series.StudyInstanceUID),
        series_instance_uid=str(series.SeriesInstanceUID),
        patient_id=str(series.PatientID),
        paths=paths,
    )


def _write(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(path, dataset, enforce_file_format=True)


def _noise(side: int, *, seed: str) -> int:
    """Noise of 0 to 31 in each 16-bit pixel, as one number; lanes never overflow into each other."""
    size = side * side * 2
    lanes = int.from_bytes(struct.pack("<H", 31) * (side * side), "little")
    return int.from_bytes(random.Random(seed).randbytes(size), "little") & lanes  # noqa: S311 - noise, not a secret


def _picture(side: int, height: float, values: _Values, noise: int) -> bytes:
    """One slice, (rows, columns), stored values; *height* in (0, 1) from feet to head."""
    waist = 0.25 + 0.2 * math.sqrt(1 - (2 * height - 1) ** 2)
    pixels = b"".join(_row(side, row, waist, values) for row in range(side))
    turned = noise >> 16 * (int(height * 1000) % 97)  # other noise in each slice, at the price of a shift
    return (int.from_bytes(pixels, "little") + turned).to_bytes(len(pixels), "little")


def _row(side: int, row: int, waist: float, values: _Values) -> bytes:
    """Air, body, spine, body, air: runs of one value each."""
    y = (row + 0.5) / side - 0.5
    body = _half_width(y, waist, 0.8) * side
    spine = _half_width(y - 0.15, 0.06, 1.0) * side
    runs = ((side / 2 - body, values.air), (body - spine, values.body), (2 * spine, values.bone))
    ends, total, out = [*runs, runs[1], runs[0]], 0.0, b""
    for width, value in ends:
        start, total = round(total), total + width
        out += struct.pack("<H", value) * (round(total) - start)
    return out


def _half_width(y: float, radius: float, flatness: float) -> float:
    """Of an ellipse *radius* wide and *flatness* times as high, at height *y*."""
    return radius * math.sqrt(max(0.0, 1 - (y / (radius * flatness)) ** 2))


def parcel_of(path: Path) -> Parcel:
    """A parcel of a Part 10 file, as the ledger would have it of the same file in the spool."""
    content = path.read_bytes()
    meta = parse_meta(content[:META_LIMIT_BYTES])
    dataset = _identified(path)
    body = memoryview(content)[meta.offset :]
    digest = hashlib.sha256(body).hexdigest()
    return Parcel(
        instance_id=ulid(0, bytes.fromhex(digest[:20])),
        path=path,
        sop_instance_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=str(dataset.SOPClassUID),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        series_instance_uid=str(dataset.SeriesInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        size_bytes=len(body),
        sha256=digest,
    )


def delivery_of(
    paths: Iterable[Path], *, total: int | None = None, extras: Mapping[str, Path] | None = None, attempt: int = 1
) -> Delivery:
    """A delivery of Part 10 files of one study, the same for the same files; *total* if some are there already."""
    parcels = tuple(map(parcel_of, paths))
    dataset = _identified(parcels[0].path)
    tags = {name: str(dataset.get(name, "")) for name in ("PatientID", "StudyInstanceUID", "Modality", "PatientName")}
    return Delivery(
        id=ulid(0, hashlib.sha256(parcels[0].study_instance_uid.encode()).digest()[:10]),
        job_id=1,
        attempt=attempt,
        study_instance_uid=parcels[0].study_instance_uid,
        rule="synthetic",
        origin=Origin(calling_ae="SYNTHETIC", called_ae="TALARIA", address="127.0.0.1"),
        tags=Tags(dict(tags)),
        parcels=parcels,
        total=len(parcels) if total is None else total,
        extras=extras or {},
    )


def _identified(path: Path) -> Dataset:
    names = ["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName"]
    return dcmread(path, stop_before_pixels=True, specific_tags=[*names, "Modality"])


class Step(StrEnum):
    """What a `FailingTarget` does with the next instance."""

    SEND = "send"
    WARN = "warn"
    REFUSE = "refuse"
    """The instance fails, the others go on."""
    TRANSIENT = "transient"
    CONGESTED = "congested"
    NO_ROOM = "no-room"
    PERMANENT = "permanent"
    BREAK = "break"
    """A bug: an error that nobody expects."""


_RAISED: Mapping[Step, Exception] = {
    Step.TRANSIENT: Transient("target 'failing': went away as its script says"),
    Step.CONGESTED: Congested("target 'failing': asked for patience", retry_after=timedelta(seconds=30)),
    Step.NO_ROOM: NoRoom("target 'failing': is full as its script says"),
    Step.PERMANENT: Permanent("target 'failing': never takes this, as its script says"),
    Step.BREAK: RuntimeError("target 'failing': a bug, as its script says"),
}

_STANDINGS = {Step.SEND: Standing.SENT, Step.WARN: Standing.WARNED, Step.REFUSE: Standing.FAILED}


class FailingTarget(Target):
    """A target that follows a script: one step for each instance it is handed, over all attempts; then it sends."""

    kind: ClassVar[str] = "failing"

    journal: Path
    """A file where each step taken is written down, so that a target made anew goes on where the last one was."""
    script: tuple[Step, ...] = ()
    """What to do with the first instance, the second, ..."""

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """Follow the script; raises what it says."""
        for parcel in delivery.parcels:
            step = self._next_step(parcel.sop_instance_uid)
            if step in _RAISED:
                raise _RAISED[step]
            yield Outcome(instance_id=parcel.instance_id, standing=_STANDINGS[step], detail=f"script: {step}")

    def check(self) -> Findings:
        """Always well."""
        return (Finding(ok=True, text=f"{len(self._lines())} steps taken"),)

    def received(self) -> Counter[str]:
        """How often each SOP Instance UID was taken."""
        taken = (line.split() for line in self._lines())
        return Counter(uid for step, uid in taken if step in {Step.SEND, Step.WARN})

    def _next_step(self, uid: str) -> Step:
        done = len(self._lines())
        step = self.script[done] if done < len(self.script) else Step.SEND
        with self.journal.open("a", encoding="ascii") as file:
            file.write(f"{step} {uid}\n")
        return step

    def _lines(self) -> list[str]:
        return self.journal.read_text("ascii").splitlines() if self.journal.exists() else []


class TargetContract:
    """
    What every target must do: inherit it in a test class, say how yours is made, and pytest runs the rest.

    `tmp_path` is pytest's.

        class TestMine(TargetContract):
            def target(self, folder: Path) -> Target: ...
            def arrived(self, folder: Path) -> Counter[str]: ...
            def gone(self, folder: Path) -> Target: ...
            def full(self, folder: Path) -> Target: ...
    """

    secrets: ClassVar[tuple[str, ...]] = ()
    """Secret texts in the settings that `target` and `gone` use; they must not be seen anywhere."""

    def target(self, folder: Path) -> Target:
        """A target whose far end works and was empty at first; *folder* is empty at first and the test's own."""
        raise NotImplementedError

    def arrived(self, folder: Path) -> Mapping[str, int]:
        """How many copies of each SOP Instance UID the far end of `target` has."""
        raise NotImplementedError

    def gone(self, folder: Path) -> Target:
        """A target whose far end is not there."""
        raise NotImplementedError

    def full(self, folder: Path) -> Target:
        """A target whose far end has no room for two synthetic CT slices."""
        raise NotImplementedError

    def test_each_instance_arrives_once(self, tmp_path: Path) -> None:
        """Every instance arrives, and an outcome says so."""
        delivery = _synthetic_delivery(tmp_path)
        outcomes = list(self.target(_own(tmp_path)).deliver(delivery))
        assert [parcel.instance_id for parcel in delivery.parcels] == [outcome.instance_id for outcome in outcomes]
        assert all(outcome.standing.is_there for outcome in outcomes)
        assert _once(delivery) == dict(self.arrived(_own(tmp_path)))

    def test_delivering_twice_ends_as_after_once(self, tmp_path: Path) -> None:
        """The same delivery again adds nothing and fails nothing."""
        delivery = _synthetic_delivery(tmp_path)
        for _ in range(2):
            outcomes = list(self.target(_own(tmp_path)).deliver(delivery))
            assert all(outcome.standing.is_there for outcome in outcomes)
        assert _once(delivery) == dict(self.arrived(_own(tmp_path)))

    def test_stopped_delivery_is_taken_up(self, tmp_path: Path) -> None:
        """A delivery stopped after its first outcome is completed by the next attempt."""
        delivery = _synthetic_delivery(tmp_path)
        with closing(_generator(self.target(_own(tmp_path)), delivery)) as stopped:
            next(stopped)
        list(self.target(_own(tmp_path)).deliver(delivery))
        assert _once(delivery) == dict(self.arrived(_own(tmp_path)))

    def test_far_end_gone_is_transient(self, tmp_path: Path) -> None:
        """A far end that is not there is worth another try, for the delivery as for the check."""
        target = self.gone(_own(tmp_path))
        _refused_as(Transient, target, _synthetic_delivery(tmp_path))
        try:
            findings = target.check()
        except Transient:
            return
        assert any(not finding.ok for finding in findings), "the check of a far end that is gone found nothing wrong"

    def test_far_end_full_is_transient(self, tmp_path: Path) -> None:
        """A far end that is full is worth another try."""
        _refused_as(Transient, self.full(_own(tmp_path)), _synthetic_delivery(tmp_path))

    def test_check_leaves_nothing(self, tmp_path: Path) -> None:
        """The test button reaches the far end, finds it well and leaves nothing there."""
        findings = self.target(_own(tmp_path)).check()
        assert findings
        assert all(finding.ok for finding in findings), findings
        assert not self.arrived(_own(tmp_path)), "the check left something behind"

    def test_secrets_are_not_shown(self, tmp_path: Path) -> None:
        """No secret stands in what the target shows of itself, or in what it says when it fails."""
        gone = self.gone(_own(tmp_path))
        error = _refused_as(TalariaError, gone, _synthetic_delivery(tmp_path))
        shown = " ".join((repr(gone), str(gone), gone.model_dump_json(), repr(error), str(error)))
        assert not any(secret in shown for secret in self.secrets), "a secret is shown"


def _own(tmp_path: Path) -> Path:
    folder = tmp_path / "far-end"
    folder.mkdir(exist_ok=True)
    return folder


def _synthetic_delivery(tmp_path: Path) -> Delivery:
    return delivery_of(synthetic_ct(tmp_path / "spool", slices=3).paths)


def _once(delivery: Delivery) -> dict[str, int]:
    return {parcel.sop_instance_uid: 1 for parcel in delivery.parcels}


def _generator(target: Target, delivery: Delivery) -> Generator[Outcome, None, None]:
    yield from target.deliver(delivery)


def _refused_as(kind: type[TalariaError], target: Target, delivery: Delivery) -> TalariaError:
    """The error of that kind that delivering raises; a failed test where it does not."""
    try:
        list(target.deliver(delivery))
    except kind as error:
        return error
    raise AssertionError(f"the delivery went through; {kind.__name__} was to be raised")

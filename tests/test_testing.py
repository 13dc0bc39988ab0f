"""What ships for tests: it is tested too."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.filewriter import validate_file_meta

from talaria.model.errors import Congested, NoRoom, Permanent, Transient
from talaria.model.extensions import Standing, Target
from talaria.testing import (
    FailingTarget,
    MovedClock,
    Step,
    SyntheticStudy,
    TargetContract,
    delivery_of,
    parcel_of,
    synthetic_ct,
    synthetic_mr,
)


def test_clock_stands_still_until_moved() -> None:
    """
    The clock tells the same time until it is moved, either way.
    """
    clock = MovedClock(datetime(2026, 3, 29, 1, 0, tzinfo=UTC))

    assert clock.now() == clock.now()
    assert datetime(2026, 3, 29, 2, 0, tzinfo=UTC) == clock.move(timedelta(hours=1))
    assert datetime(2026, 3, 28, 2, 0, tzinfo=UTC) == clock.move(timedelta(days=-1)) == clock.now()


def test_ct_is_a_series_of_whole_instances(tmp_path: Path) -> None:
    """
    A synthetic CT reads as one: each slice with its own UID and place, and values between air and bone.
    """
    study = synthetic_ct(tmp_path, slices=3)

    slices = [dcmread(path) for path in study.paths]
    assert ["1", "2", "3"] == [str(one.InstanceNumber) for one in slices]
    assert 3 == len({one.SOPInstanceUID for one in slices})
    assert {study.series_instance_uid} == {one.SeriesInstanceUID for one in slices}
    assert {study.study_instance_uid} == {one.StudyInstanceUID for one in slices}
    assert [3.0, 6.0, 9.0] == [float(one.ImagePositionPatient[2]) for one in slices]
    for one in slices:
        validate_file_meta(one.file_meta)
        pixels = memoryview(one.PixelData).cast("H")
        assert 512 * 512 == len(pixels)
        assert 24 <= min(pixels)
        assert 1500 < max(pixels) < 1 << 12
    assert 3 == len({one.PixelData for one in slices})


@pytest.mark.parametrize("make", [synthetic_ct, synthetic_mr])
def test_equal_seeds_give_equal_bytes(tmp_path: Path, make: type[SyntheticStudy]) -> None:
    """
    A study can be made again; another seed is another patient's.
    """
    first, again, other = (
        make(tmp_path / name, slices=2, side=64, seed=s) for name, s in (("a", 1), ("b", 1), ("c", 2))
    )

    assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in again.paths]
    assert first.patient_id != other.patient_id
    assert not {parcel_of(p).sop_instance_uid for p in first.paths} & {
        parcel_of(p).sop_instance_uid for p in other.paths
    }


def test_names_may_be_other_than_ascii(tmp_path: Path) -> None:
    """
    A name that ASCII cannot write is there when asked for, and reads back.
    """
    study = synthetic_mr(tmp_path, slices=1, side=16, seed=1, non_ascii=True)

    assert "合成^太郎" == dcmread(study.paths[0]).PatientName.ideographic


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Step.TRANSIENT, Transient),
        (Step.CONGESTED, Congested),
        (Step.NO_ROOM, NoRoom),
        (Step.PERMANENT, Permanent),
        (Step.BREAK, RuntimeError),
    ],
)
def test_failing_target_follows_its_script(tmp_path: Path, step: Step, kind: type[Exception]) -> None:
    """
    The script goes on where the last attempt broke, in a target made anew.
    """
    delivery = delivery_of(synthetic_ct(tmp_path / "ct", slices=3, side=16).paths)
    settings = {"journal": tmp_path / "journal", "script": (Step.WARN, step, Step.REFUSE)}
    outcomes = FailingTarget(**settings).deliver(delivery)

    assert Standing.WARNED == next(outcomes).standing
    with pytest.raises(kind):
        next(outcomes)

    standings = [outcome.standing for outcome in FailingTarget(**settings).deliver(delivery)]
    assert [Standing.FAILED, Standing.SENT, Standing.SENT] == standings
    uids = [parcel.sop_instance_uid for parcel in delivery.parcels]
    assert Counter(uids) == FailingTarget(**settings).received()


class TestContractOfATargetThatForgets(TargetContract):
    """
    The contract passes for a target that does all it must: here the scripted one, with a journal that knows.
    """

    def target(self, folder: Path) -> Target:
        return FailingTarget(journal=folder / "journal")

    def arrived(self, folder: Path) -> dict[str, int]:
        return dict.fromkeys(FailingTarget(journal=folder / "journal").received(), 1)

    def gone(self, folder: Path) -> Target:
        return Gone(journal=folder / "gone", script=(Step.TRANSIENT,))

    def full(self, folder: Path) -> Target:
        return FailingTarget(journal=folder / "full", script=(Step.NO_ROOM,))


class Gone(FailingTarget):
    """Its check fails too."""

    def check(self) -> tuple[()]:
        raise Transient("target 'failing': is gone")


class Doubling(TargetContract):
    """A target that sends again what is there."""

    secrets = ("journal",)

    def target(self, folder: Path) -> Target:
        return FailingTarget(journal=folder / "journal")

    def arrived(self, folder: Path) -> Counter[str]:
        return FailingTarget(journal=folder / "journal").received()

    def gone(self, folder: Path) -> Target:
        return self.target(folder)

    full = gone


@pytest.mark.parametrize(
    "fact",
    [
        "test_delivering_twice_ends_as_after_once",
        "test_stopped_delivery_is_taken_up",
        "test_far_end_gone_is_transient",
        "test_far_end_full_is_transient",
    ],
)
def test_contract_finds_what_is_wrong(tmp_path: Path, fact: str) -> None:
    """
    A target that doubles, and one whose missing far end goes unnoticed, are found out.
    """
    with pytest.raises(AssertionError):
        getattr(Doubling(), fact)(tmp_path)


class Telling(Doubling):
    """A target that shows its secret when it fails."""

    def gone(self, folder: Path) -> Target:
        return FailingTarget(journal=folder / "journal", script=(Step.PERMANENT,))


def test_contract_finds_a_shown_secret(tmp_path: Path) -> None:
    """
    A secret in what a target shows of itself is found.
    """
    with pytest.raises(AssertionError, match="a secret is shown"):
        Telling().test_secrets_are_not_shown(tmp_path)

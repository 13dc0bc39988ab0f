"""The module set_tags: sets what it was told, and nothing else changes."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom import dcmread
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian

from talaria.model.errors import Permanent
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.modules.set_tags import SetTags
from talaria.testing import synthetic_ct, synthetic_mr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The input folder, empty."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output folder, empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def run(module: SetTags, source: Path, out: Path) -> list[Path]:
    """Run it; what it wrote."""
    module.run(source, out, {})
    return sorted(out.rglob("*.dcm"))


def only(path: Path, source: Path) -> Path:
    """The input folder with one file."""
    (source / "one.dcm").write_bytes(path.read_bytes())
    return source


def test_sets_elements_and_gives_new_uids(source: Path, out: Path) -> None:
    """
    Elements that were there are replaced, others put in; UIDs are new, and the file meta agrees.
    """
    study = synthetic_ct(source, slices=3, side=32)

    written = run(SetTags(tags={"SeriesDescription": "AI", "0018,0010": "CONTRAST", "SeriesNumber": 900}), source, out)

    assert 3 == len(written)
    results = [dcmread(path) for path in written]
    assert {"AI"} == {result.SeriesDescription for result in results}
    assert {"CONTRAST"} == {result.ContrastBolusAgent for result in results}
    assert {900} == {result.SeriesNumber for result in results}
    assert 1 == len({result.SeriesInstanceUID for result in results})
    assert study.series_instance_uid != results[0].SeriesInstanceUID
    assert {study.study_instance_uid} == {result.StudyInstanceUID for result in results}
    for path, result in zip(written, results, strict=True):
        assert f"{result.SeriesInstanceUID}#{result.SOPInstanceUID}.dcm" == path.name
        assert result.SOPInstanceUID == result.file_meta.MediaStorageSOPInstanceUID
        assert result.SOPInstanceUID.is_valid
    olds = {dcmread(path).SOPInstanceUID for path in study.paths}
    assert set() == olds & {result.SOPInstanceUID for result in results}


def test_running_again_gives_the_same_bytes(source: Path, out: Path, tmp_path: Path) -> None:
    """
    A second run of the same step ends with the same instances; other settings give other UIDs.
    """
    synthetic_mr(source, slices=2, side=32)
    (tmp_path / "again").mkdir()
    (tmp_path / "other").mkdir()

    first = run(SetTags(tags={"SeriesDescription": "A"}), source, out)
    again = run(SetTags(tags={"SeriesDescription": "A"}), source, tmp_path / "again")
    other = run(SetTags(tags={"SeriesDescription": "B"}), source, tmp_path / "other")

    assert {path.name: path.read_bytes() for path in first} == {path.name: path.read_bytes() for path in again}
    assert not {path.name for path in first} & {path.name for path in other}


def test_uids_are_kept_when_told(source: Path, out: Path) -> None:
    """
    With keep_uids the results pass for the originals.
    """
    study = synthetic_ct(source, slices=1, side=32)

    written = run(SetTags(tags={}, keep_uids=True), source, out)

    assert [f"{study.series_instance_uid}#{dcmread(study.paths[0]).SOPInstanceUID}.dcm"] == [p.name for p in written]
    original = study.paths[0].read_bytes()
    assert data_set(original) == data_set(written[0].read_bytes())


def data_set(content: bytes) -> bytes:
    """The bytes after the file meta information."""
    return content[parse_meta(content[:META_LIMIT_BYTES]).offset :]


#: What comes with pydicom itself; nothing is fetched.
PACKAGED = sorted(Path(DATA_ROOT, "test_files").rglob("*.dcm"))


def samples() -> list[Path]:
    """Real files where there are some, pydicom's own where not."""
    home = os.environ.get("TALARIA_TEST_DATA")
    names = sorted(Path(home).rglob("*"))[::9] if home else PACKAGED
    return [path for path in names if path.is_file()]


def test_nothing_else_changes_in_real_files(source: Path, tmp_path: Path) -> None:
    """
    Of real files in many transfer syntaxes, only the bytes of the elements set differ: pixel data, private elements and
    sequences are those of the original.
    """
    module = SetTags(tags={"SeriesDescription": "CHANGED"})
    done = 0
    for number, path in enumerate(samples()):
        out = tmp_path / str(number)
        out.mkdir()
        try:
            written = run(module, only(path, source), out)
        except Permanent:
            continue  # kept by pydicom for being broken
        if not written or written[0].name == "one.dcm":
            continue  # not an instance
        assert_same_but_for_changes(path, written[0])
        done += 1

    assert 10 < done


def assert_same_but_for_changes(path: Path, written: Path) -> None:
    """Each element other than those set has the same raw bytes."""
    before, after = dcmread(path), dcmread(written)
    changed = {0x00080018, 0x0020000E, 0x0008103E}

    assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
    assert "CHANGED" == after.SeriesDescription
    kept = {tag for tag in before._dict if not (tag.element == 0 and tag.group in {0x0008, 0x0020})}
    assert kept | changed == set(after._dict)
    for tag in set(before._dict) & set(after._dict) - changed:
        assert before.get_item(tag).value == after.get_item(tag).value, (path, tag)


def test_deflated_data_set_stays_deflated(source: Path, out: Path, tmp_path: Path) -> None:
    """
    A deflated data set is deflated again.
    """
    dataset = dcmread(synthetic_ct(tmp_path / "made", slices=1, side=32).paths[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dcmwrite(source / "deflated.dcm", dataset)

    written = run(SetTags(tags={"SeriesDescription": "AI"}), source, out)

    result = dcmread(written[0])
    assert DeflatedExplicitVRLittleEndian == result.file_meta.TransferSyntaxUID
    assert "AI" == result.SeriesDescription
    assert dataset.PixelData == result.PixelData
    assert 0 == len(data_set(written[0].read_bytes())) % 2


def test_big_endian_numbers(source: Path, out: Path) -> None:
    """
    Numbers are written in the byte order of the file.
    """
    only(Path(DATA_ROOT, "test_files", "MR_small_bigendian.dcm"), source)

    written = run(
        SetTags(
            tags={
                "EchoNumbers": 7,
                "PixelAspectRatio": [1, 2],
                "RecommendedDisplayFrameRate": 9,
                "SeriesNumber": 12,
                "ReferencePixelX0": -5,
                "TagAngleFirstAxis": 1.5,
            }
        ),
        source,
        out,
    )

    result = dcmread(written[0])
    assert (7, [1, 2], -5, 1.5) == (
        result.EchoNumbers,
        list(result.PixelAspectRatio),
        result.ReferencePixelX0,
        result.TagAngleFirstAxis,
    )


def test_other_files_travel_along(source: Path, out: Path) -> None:
    """
    What is not a DICOM instance is copied; the task and the tags of this step are not.
    """
    for name in ("report.pdf", "result.txt", "task.json", "1#2.tags"):
        (source / name).write_text(name)
    (source / "sub").mkdir()
    (source / "sub" / "task.json").write_text("another's")
    (source / "link").symlink_to("/etc/passwd")

    SetTags(tags={}).run(source, out, {})

    assert {"report.pdf", "result.txt", "sub", "sub/task.json"} == {str(p.relative_to(out)) for p in out.rglob("*")}


def test_text_is_written_in_the_character_set_of_the_file(source: Path, out: Path) -> None:
    """
    A value takes the character set that the instance has.
    """
    synthetic_ct(source, slices=1, side=32)

    written = run(SetTags(tags={"PatientName": "山田^太郎", "StudyDescription": "Schädel"}), source, out)

    assert ("山田^太郎", "Schädel") == (dcmread(written[0]).PatientName, dcmread(written[0]).StudyDescription)


@pytest.mark.parametrize("tags", [{"StudyDescription": "頭部"}, {"PatientName": "山田"}])
def test_text_that_the_character_set_lacks_is_refused(source: Path, out: Path, tags: dict[str, str]) -> None:
    """
    Text is never written as question marks.
    """
    dataset = dcmread(synthetic_ct(source, slices=1, side=32).paths[0])
    del dataset.SpecificCharacterSet
    dcmwrite(source / "CT00001.dcm", dataset)

    with pytest.raises(Permanent) as caught:
        run(SetTags(tags=tags), source, out)

    assert "set_tags: CT00001.dcm: its character set cannot write one of the values" == str(caught.value)


def test_broken_instance_is_named(source: Path, out: Path) -> None:
    """
    A file that cannot be understood fails the step, and is named.
    """
    path = synthetic_ct(source, slices=2, side=32).paths[1]
    path.write_bytes(path.read_bytes()[:700])

    with pytest.raises(Permanent, match=r"set_tags: CT00002\.dcm: the data set is cut off"):
        run(SetTags(tags={}), source, out)


def test_instance_without_uid_is_refused(source: Path, out: Path) -> None:
    """
    An instance without a SOP Instance UID cannot get a new one.
    """
    dataset = Dataset()
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.4"
    dataset.preamble = bytes(128)
    dcmwrite(source / "x.dcm", dataset)

    with pytest.raises(Permanent, match=r"x\.dcm: SOP Instance UID \(0008,0018\) is unusable"):
        run(SetTags(tags={}), source, out)


def test_two_instances_of_one_uid_are_refused(source: Path, out: Path) -> None:
    """
    One result does not silently replace another.
    """
    path = synthetic_ct(source, slices=1, side=32).paths[0]
    (source / "twin.dcm").write_bytes(path.read_bytes())

    with pytest.raises(Permanent, match="another instance of the input has the same UIDs"):
        run(SetTags(tags={}), source, out)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 5}, "Rows cannot be set: the pixel data would read differently"),
        ({"SOPInstanceUID": "1.2"}, "SOPInstanceUID cannot be set: each instance needs its own; see keep_uids"),
        (
            {"PixelData": "x"},
            "PixelData cannot be set: only data elements of PS3.6 from (0008,0001)",
        ),
        ({"0009,1001": "x"}, "0009,1001 cannot be set: only data elements of PS3.6"),
        ({"0002,0010": "1.2"}, "0002,0010 cannot be set: only data elements of PS3.6"),
        ({"fffe,e000": ""}, "fffe,e000 cannot be set: only data elements of PS3.6"),
        (
            {"ReferencedStudySequence": "x"},
            "ReferencedStudySequence cannot be set to that value: it is SQ",
        ),
        ({"PatientNme": "x"}, "'PatientNme' is neither a keyword of PS3.6 nor gggg,eeee"),
        ({"zz,zz": "x"}, "'zz,zz' is neither a keyword of PS3.6 nor gggg,eeee"),
        ({"StudyDate": "yesterday"}, "StudyDate cannot be set to that value: Invalid value for VR DA"),
        ({"PatientID": "x" * 65}, "PatientID cannot be set to that value: The value length (65) exceeds"),
        ({"EchoNumbers": "many"}, "EchoNumbers cannot be set to that value"),
        ({"RecommendedDisplayFrameRateInFloat": "x"}, "RecommendedDisplayFrameRateInFloat cannot be set to that value"),
        ({"ReferencePixelX0": 1 << 40}, "ReferencePixelX0 cannot be set to that value"),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_settings(tags: dict[str, str], message: str) -> None:
    """
    Settings are refused before a file is touched, with what is wrong.
    """
    with pytest.raises(ValidationError) as caught:
        SetTags(tags=tags)

    assert message in str(caught.value)


def test_empty_value_empties_the_element(source: Path, out: Path) -> None:
    """
    Nothing is a value too.
    """
    synthetic_ct(source, slices=1, side=32)

    written = run(SetTags(tags={"PatientID": "", "EchoNumbers": ""}), source, out)

    assert ("", None) == (dcmread(written[0]).PatientID, dcmread(written[0]).EchoNumbers)


@pytest.mark.parametrize("cut", [*range(0, 400, 23)])
def test_cut_files_never_break_it(source: Path, out: Path, cut: int) -> None:
    """
    Wherever a file is cut off, it is copied as no instance, refused by name, or, cut in its pixel data, kept.
    """
    path = synthetic_ct(source, slices=1, side=4).paths[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * cut // 400])

    with suppress(Permanent):
        SetTags(tags={}).run(source, out, {})

    written = list(out.iterdir())
    assert len(written) <= 1
    assert all(path.name == "CT00001.dcm" or 64 < len(path.name) for path in written)

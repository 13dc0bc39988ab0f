"""DICOM's own values: UIDs, AE titles, tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from talaria.model.dicom import UID, AETitle, Tags


@pytest.mark.parametrize(
    "text", ["1", "1.2.840.10008.1.2", "0.0", "1.02", "1..2", "9" * 64, "1.2\0", " 1.2 ", "1.2 \0"]
)
def test_uids_of_real_devices_are_taken(text: str) -> None:
    """Digits and dots, a digit first and last, up to 64; padding is dropped."""
    assert text.strip(" \0") == UID(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "1.", ".1", "9" * 65, "1.a", "../1", "1/2", "1\0.2", "١.٢", "1.2\n", "1 2"]
)
def test_what_is_no_uid_is_refused(text: str) -> None:
    """A UID can be a file's name and a URL's part: nothing else passes."""
    with pytest.raises(ValueError, match="is not a UID"):
        UID(text)


@pytest.mark.parametrize(
    ("text", "conformant"), [("1.2.840", True), ("0.0", True), ("1.02", False), ("1..2", False), ("00.1", False)]
)
def test_conformance_is_told(text: str, conformant: bool) -> None:
    """PS3.5 9.1: no empty component, no leading zero."""
    assert conformant is UID(text).conformant


@pytest.mark.parametrize("text", ["CT1", " CT1 ", "a b", "; rm -rf /", "%s%n", "1234567890123456", "../.."])
def test_ae_titles_are_printable_ascii(text: str) -> None:
    """Sixteen printable characters without a backslash; blanks around them carry no meaning."""
    assert text.strip(" ") == AETitle(text)


@pytest.mark.parametrize("text", ["", " " * 16, "12345678901234567", "A\\B", "A\nB", "A\0", "Ä", "\xff" * 16, "A\x7f"])
def test_what_is_no_ae_title_is_refused(text: str) -> None:
    """Control characters, backslashes, and what is not ASCII."""
    with pytest.raises(ValueError, match="is not an AE title"):
        AETitle(text)


@given(st.text(max_size=70))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    """Making one again changes nothing."""
    for kind in (UID, AETitle):
        try:
            value = kind(text)
        except ValueError:
            continue
        assert value == kind(value)


class _Form(BaseModel):
    uid: UID
    ae: AETitle


def test_pydantic_reads_them_as_text() -> None:
    """Checked on the way in, plain text on the way out."""
    form = _Form.model_validate({"uid": "1.2 ", "ae": " CT1"})

    assert {"uid": "1.2", "ae": "CT1"} == form.model_dump()
    assert isinstance(form.uid, UID)
    with pytest.raises(ValidationError):
        _Form.model_validate({"uid": "x", "ae": "CT1"})


TAGS = Tags({"Modality": "CT", "PatientID": None, "0019,10xx/ACME": "1\\2", "StudyDescription": ""})


def test_absent_tags_are_keys_with_an_empty_value() -> None:
    """What was looked for is a key; only what was not looked for is missing."""
    assert ("CT", "", "") == (TAGS["Modality"], TAGS["PatientID"], TAGS["StudyDescription"])
    assert frozenset({"PatientID"}) == TAGS.absent
    assert "PatientID" in TAGS
    assert "Rows" not in TAGS
    assert 4 == len(TAGS)
    with pytest.raises(KeyError):
        TAGS["Rows"]


def test_look_up_ignores_case() -> None:
    """In any case, and by text only."""
    assert "CT" == TAGS["modality"]
    assert "1\\2" == TAGS["0019,10XX/acme"]
    assert 8 not in TAGS


def test_tags_show_no_values() -> None:
    """A value names a patient, so a repr has none."""
    assert "<Tags of 4 names>" == repr(TAGS)


def test_tags_are_values() -> None:
    """Equal by content, absence included; changed only by making others."""
    changed = TAGS.with_values({"Modality": "MR", "Rows": None})

    assert "CT" == TAGS["Modality"]
    assert {**TAGS.as_document(), "Modality": "MR", "Rows": None} == changed.as_document()
    assert TAGS == Tags(TAGS.as_document())
    assert Tags({"A": "1", "B": None}) == Tags.of({"A": "1", "B": ""}, frozenset({"B"}))
    assert hash(TAGS) == hash(Tags(TAGS.as_document()))
    assert Tags({"A": ""}) != Tags({"A": None})
    assert TAGS != {"Modality": "CT"}


@given(st.dictionaries(st.text(max_size=8), st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
def test_tags_survive_json(document: dict[str, str | None]) -> None:
    """What goes into the ledger comes out of it."""
    assert Tags(document) == Tags.from_json(Tags(document).to_json())
    assert document == Tags(document).as_document()

"""Names of tags: what is understood, what is not, and what is said then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_dict

from talaria.model.errors import ConfigError
from talaria.model.recorded import ASSOCIATION_NAMES, MERCURE_NAMES, RECORDED
from talaria.model.taglist import TagList, resolve


@pytest.mark.parametrize(
    ("written", "spelt"),
    [
        ("Modality", "Modality"),
        ("seriesdescription", "SeriesDescription"),
        (" PatientID ", "PatientID"),
        ("0008,0060", "0008,0060"),
        ("0020,000D", "0020,000d"),
        ("0019,10XX/SIEMENS MR HEADER", "0019,10xx/SIEMENS MR HEADER"),
        ("0019,xx0C/SIEMENS MR HEADER", "0019,0cxx/SIEMENS MR HEADER"),
        ("2001,05xx/Philips Imaging/DD [0] 001", "2001,05xx/Philips Imaging/DD [0] 001"),
        (
            "requestattributessequence[00].scheduledprocedurestepid",
            "RequestAttributesSequence[0].ScheduledProcedureStepID",
        ),
        ("0040,0275[1].0040,0009", "0040,0275[1].0040,0009"),
        ("5200,9230[0].0018,9114[0].EffectiveEchoTime", "5200,9230[0].0018,9114[0].EffectiveEchoTime"),
        ("mediastoragesopclassuid", "MediaStorageSOPClassUID"),
        ("transfersyntaxuid", "TransferSyntaxUID"),
        ("Filename", "Filename"),
        ("6000,0010", "6000,0010"),
        ("0008,9999", "0008,9999"),
    ],
)
def test_names_are_spelt_in_one_way(written: str, spelt: str) -> None:
    """Keywords and hexadecimal digits may be written in any case; private creators may not."""
    assert spelt == resolve(written).name
    assert spelt == resolve(spelt).name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("SeriesDescripton", "no DICOM element is called 'SeriesDescripton'; did you mean SeriesDescription?"),
        ("Modallity", "no DICOM element is called 'Modallity'; did you mean Modality?"),
        ("Qwxzzk", "no DICOM element is called 'Qwxzzk'"),
        (
            "Series Description",
            "'Series Description' is not a tag name; write a keyword (Modality), gggg,eeee, gggg,eexx/PRIVATE CREATOR, "
            "or a path (RequestAttributesSequence[0].ScheduledProcedureStepID)",
        ),
        ("0002,0010", "0002,0010 is not an element of an instance's data set"),
        ("ImplementationClassUID", "ImplementationClassUID is not an element of an instance's data set"),
        ("AffectedSOPClassUID", "AffectedSOPClassUID is not an element of an instance's data set"),
        ("Modality[0].Rows", "Modality is no sequence and has no items; leave out [0]"),
        ("0018,10xx/ACME", "group 0018 of tag name '0018,10xx/ACME' is not private; leave out the creator"),
        (
            "0019,10xx/A\\B",
            "private creator of tag name '0019,10xx/A\\\\B' is not 1 to 64 printable ASCII characters",
        ),
        (
            "ReferencedImageSequence[0]." * 32 + "Modality",
            "tag name 'ReferencedImageSequence[0].ReferencedImageSequence[0].ReferencedImageSequence[0]...' goes "
            "through more than 31 sequences; shorten it",
        ),
    ],
)
def test_names_that_are_not_understood(written: str, message: str) -> None:
    """An error says what was written, and what is near."""
    with pytest.raises(ConfigError) as error:
        resolve(written)

    assert message == str(error.value)


@pytest.mark.parametrize("name", ["", ".", "[0]", "Modality.", "ReferencedImageSequence[0]", "0008,006", "A" * 10_000])
def test_malformed_names(name: str) -> None:
    """What is no name at all is a ConfigError too."""
    with pytest.raises(ConfigError):
        resolve(name)


@given(st.text(max_size=60) | st.from_regex(r"([A-Za-z,0-9]{1,12}(\[[0-9]{1,6}\])?[./]?){1,4}", fullmatch=True))
def test_any_text_is_understood_or_refused(text: str) -> None:
    """No text raises anything but ConfigError, and what is understood is spelt in one way."""
    try:
        path = resolve(text)
    except ConfigError:
        return
    assert path == resolve(path.name)


def test_every_keyword_of_the_dictionary_is_understood() -> None:
    """All keywords of groups 0008 and up can be asked for at once."""
    keywords = [word for word, tag in keyword_dict.items() if word and 0x00080000 <= tag < 0xFFFE0000]

    assert tuple(keywords) == TagList.of(keywords).names


def test_lists_are_united_in_order() -> None:
    """A name that comes twice, in whatever spelling, is one name; another way to name the element is another."""
    united = TagList.of(["modality", "PatientID"], ("Modality", "0008,0060"))

    assert ("Modality", "PatientID", "0008,0060") == united.names


def test_recorded_names_are_understood_and_stand_once() -> None:
    """Everything recorded is spelt as it is kept, and mercure's list is part of it."""
    assert RECORDED == TagList.of(RECORDED).names
    assert set(MERCURE_NAMES) <= set(RECORDED)
    assert not set(ASSOCIATION_NAMES) & set(RECORDED)
    assert len(RECORDED) > 145

"""Names made of tags: safe whatever a sender wrote, and the same each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.dicom import Tags
from talaria.model.errors import Permanent
from talaria.targets.layout import checked_layout, extra_path, folders, is_left_out, safe_name

HOSTILE = st.one_of(
    st.text(),
    st.text(alphabet="./\\\0\n\r:~ \u202e\u200b\ud800", max_size=300),
    st.sampled_from(
        ["..", ".", "", " ", "/etc/passwd", "../../x", "CON", "nul.dcm", ".complete", "a" * 5000, "é" * 200]
    ),
)


@given(HOSTILE)
def test_any_value_gives_a_safe_name(value: str) -> None:
    """
    Whatever the tag holds, the name is one visible path component that every file system takes.
    """
    name = safe_name(value)

    assert 1 <= len(name.encode("utf-8")) <= 210
    assert not set(name) & set('/\\:*?"<>|\0\n\r')
    assert name.isprintable() or any(c.isspace() for c in name)
    assert not name.startswith((".", " "))
    assert not name.endswith((".", " "))


@given(HOSTILE, HOSTILE)
def test_any_values_give_as_many_folders_as_the_layout_has(patient: str, study: str) -> None:
    """
    A value cannot add a folder, leave one, or hide one.
    """
    tags = Tags({"PatientID": patient, "StudyDescription": study})

    made = folders("{PatientID}/{StudyDescription}.{PatientID}/fixed", tags)

    assert 3 == len(made)
    assert "fixed" == made[2]
    assert all("/" not in name and not name.startswith(".") and len(name.encode()) <= 210 for name in made)
    assert made == folders("{PatientID}/{StudyDescription}.{PatientID}/fixed", tags)


def test_absent_and_empty_values_are_unknown() -> None:
    """
    A tag without a value gives UNKNOWN, whether it was looked for or not.
    """
    assert ("UNKNOWN", "UNKNOWN") == folders("{PatientID}/{StudyID}", Tags({"PatientID": None}))


def test_no_layout_gives_no_folder() -> None:
    """
    Without a layout a delivery stands right below the path.
    """
    assert () == folders("", Tags({}))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{PatientIDD}", "layout: {PatientIDD} is no tag; did you mean PatientID?"),
        ("{}", "layout: {} is no tag"),
        ("{PatientID", "layout: a brace without its other in '{PatientID'"),
        ("/{PatientID}", "layout: an empty folder name; no '/' at either end and none doubled"),
        ("a//b", "layout: an empty folder name; no '/' at either end and none doubled"),
        (
            "../{PatientID}",
            "layout: '..' is no safe folder name; no dot or blank at either end, none of :*?\"<>|\\",
        ),
        (
            "a\\b",
            "layout: 'a\\\\b' is no safe folder name; no dot or blank at either end, none of :*?\"<>|\\",
        ),
        ("/".join("a" * 17), "layout: 17 folders deep; 16 is the most"),
    ],
)
def test_unusable_layouts_are_refused(layout: str, message: str) -> None:
    """
    A layout is refused when it is written, with what is wrong in it.
    """
    with pytest.raises(ValueError) as caught:
        checked_layout(layout)

    assert message == str(caught.value)


@pytest.mark.parametrize("layout", ["", "{PatientID}", "of {SenderAET}/{0010,0020}-{StudyDate}", "in/{Modality}"])
def test_usable_layouts_are_kept(layout: str) -> None:
    """
    Keywords, numbers, the sender's names and fixed text may be mixed.
    """
    assert layout == checked_layout(layout)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a\nb", "a\0b", ".complete", "x" * 256]
)
def test_results_cannot_leave_their_folder(name: str) -> None:
    """
    A name that a module made cannot leave the delivery, nor take a name that has a meaning.
    """
    with pytest.raises(Permanent):
        extra_path(name)


def test_results_may_stand_in_folders() -> None:
    """
    A module may have written folders; they are kept.
    """
    assert ("report", "page 1.pdf") == extra_path("report/page 1.pdf")


def test_globs_look_at_the_name_alone() -> None:
    """
    A glob leaves out by the file's own name, wherever it stands.
    """
    assert is_left_out("report/log.json", ("*.json",))
    assert not is_left_out("report/log.json", ("report*", "*.JSON"))

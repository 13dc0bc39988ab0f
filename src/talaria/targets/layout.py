"""Where the files of a delivery stand: folders named after tags, and file names, safe on any file system."""

import difflib
import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase

from pydicom.datadict import keyword_dict

from talaria.model.dicom import UID, Tags
from talaria.model.errors import Permanent
from talaria.model.extensions import Parcel

#: Written last, empty: the delivery is whole.
COMPLETE = ".complete"

_FIELD = re.compile(r"\{([^{}]*)\}")
_NUMBER = re.compile(r"[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}")
_SENDER_NAMES = frozenset({"SenderAET", "ReceiverAET", "SenderAddress"})
_MOST_FOLDERS = 16
_MOST_BYTES = 200  # of one name; file systems take 255, and some far ends add to it
_FORBIDDEN = frozenset('/\\:*?"<>|')  # separators, and what SMB shares refuse
_DEVICES = re.compile(r"(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\..*)?", re.IGNORECASE)


class Part(StrEnum):
    """What a delivery of files is made of."""

    DICOM = "dicom"
    RESULTS = "results"
    """What a module wrote besides DICOM."""
    TASK = "task"
    """`task.json`."""
    TAGS = "tags"
    """The `.tags` file beside each instance."""


def part_of(name: str) -> Part:
    """
    Which part a file other than an instance belongs to, by its name.

    >>> part_of("task.json"), part_of("1.2#1.3.tags"), part_of("result.json")
    (<Part.TASK: 'task'>, <Part.TAGS: 'tags'>, <Part.RESULTS: 'results'>)
    """
    if name == "task.json":
        return Part.TASK
    return Part.TAGS if name.endswith(".tags") else Part.RESULTS


def file_name(parcel: Parcel) -> str:
    """
    The name of a delivered instance, `<SeriesInstanceUID>#<SOPInstanceUID>.dcm`.

    Raises:
        Permanent: One of the UIDs is none, so that no name can be made of it.
    """
    try:
        return f"{UID(parcel.series_instance_uid)}#{UID(parcel.sop_instance_uid)}.dcm"
    except ValueError as error:
        raise Permanent(f"no file name can be made: {error}") from None


def extra_path(name: str) -> tuple[str, ...]:
    """
    The folders and the name of a file that travels besides DICOM.

    Raises:
        Permanent: It leaves its folder, hides, or is a name that no folder takes; the name itself is not told, since
            a module may have made it of a patient's.
    """
    parts = tuple(name.split("/"))
    if len(parts) > _MOST_FOLDERS or not all(map(_is_plain, parts)):
        raise Permanent(
            "a result has a name that cannot be delivered (empty, '.', '..', control characters, "
            f"more than {_MOST_FOLDERS} folders or 255 bytes, or one of our own); rename it in the module"
        )
    return parts


def _is_plain(name: str) -> bool:
    reserved = {"", ".", "..", COMPLETE}
    return (
        name not in reserved
        and not name.startswith(".talaria-")
        and len(name.encode("utf-8", "surrogateescape")) <= 255
        and not any(unicodedata.category(c) == "Cc" for c in name)
    )


def checked_layout(text: str) -> str:
    """
    A layout as it was written, once it is known to be usable.

    Raises:
        ValueError: Says which part is wrong, and what may have been meant.

    >>> checked_layout("{PatientID}/{StudyInstanceUID}")
    '{PatientID}/{StudyInstanceUID}'
    >>> checked_layout("{PatientId}")
    Traceback (most recent call last):
    ValueError: layout: {PatientId} is no tag; did you mean PatientID?
    """
    folders = text.split("/") if text else []
    if len(folders) > _MOST_FOLDERS:
        raise ValueError(f"layout: {len(folders)} folders deep; {_MOST_FOLDERS} is the most")
    for folder in folders:
        _check_folder(folder)
    for name in tag_names(text):
        _check_name(name)
    return text


def _check_folder(folder: str) -> None:
    fixed = _FIELD.sub("", folder)
    if "{" in fixed or "}" in fixed:
        raise ValueError(f"layout: a brace without its other in {folder!r}")
    if not folder:
        raise ValueError("layout: an empty folder name; no '/' at either end and none doubled")
    if any(map(_is_unsafe, fixed)) or (fixed == folder and safe_name(folder) != folder):
        raise ValueError(f'layout: {folder!r} is no safe folder name; no dot or blank at either end, none of :*?"<>|\\')


def _check_name(name: str) -> None:
    if name in _SENDER_NAMES or (name and name in keyword_dict) or _NUMBER.fullmatch(name):
        return
    close = difflib.get_close_matches(name, [*filter(None, keyword_dict), *_SENDER_NAMES], n=1)
    raise ValueError(f"layout: {{{name}}} is no tag" + (f"; did you mean {close[0]}?" if close else ""))


def tag_names(layout: str) -> tuple[str, ...]:
    """The tags that a layout reads: keywords, `gggg,eeee`, or SenderAET, ReceiverAET, SenderAddress."""
    return tuple(_FIELD.findall(layout))


def folders(layout: str, tags: Tags) -> tuple[str, ...]:
    """
    The folders that a layout stands for; equal tags give equal folders.

    >>> folders("{Modality}/of {PatientID}", Tags({"Modality": "CT", "PatientID": "../../etc"}))
    ('CT', 'of .._.._etc')
    """
    return tuple(_folder(part, tags) for part in layout.split("/")) if layout else ()


def _folder(template: str, tags: Mapping[str, str]) -> str:
    filled = _FIELD.sub(lambda match: _replaced(tags.get(match[1], "")) or "UNKNOWN", template)
    return safe_name(filled)


def safe_name(text: str) -> str:
    r"""
    A name made of a value that a stranger chose: one path component, at most 200 bytes of UTF-8, never empty.

    Separators, control and invisible characters and what SMB refuses become `_`, as do a dot or blank at either end;
    a name that Windows keeps for a device is given a `_` before it. Different values may give the same name.

    >>> safe_name("../a\0b"), safe_name(" "), safe_name("山田^太郎"), safe_name("nul.txt")
    ('_._a_b', 'UNKNOWN', '山田^太郎', '_nul.txt')
    """
    replaced = _replaced(text)
    cut = replaced.encode("utf-8")[:_MOST_BYTES].decode("utf-8", "ignore")
    if not cut:
        return "UNKNOWN"
    ends = ". "
    middle = ("_" if cut[0] in ends else cut[0]) + cut[1:]
    middle = middle[:-1] + ("_" if middle[-1] in ends else middle[-1])
    return f"_{middle}" if _DEVICES.fullmatch(middle) else middle


def _replaced(text: str) -> str:
    """*text* in NFC without blanks at its ends, each character that a file name may not have replaced by `_`."""
    stripped = unicodedata.normalize("NFC", text).strip()
    return "".join("_" if _is_unsafe(character) else character for character in stripped)


def _is_unsafe(character: str) -> bool:
    """Whether it is a separator, a line's end, invisible (Unicode categories C, Zl, Zp), or refused by SMB."""
    category = unicodedata.category(character)
    return character in _FORBIDDEN or category[0] == "C" or category in {"Zl", "Zp"}


def is_left_out(name: str, exclude: tuple[str, ...]) -> bool:
    """Whether a file of this name is excluded; patterns are globs on the name alone, and case counts."""
    return any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in exclude)

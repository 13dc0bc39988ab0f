"""Which elements are wanted: names as people write them, checked against the dictionaries and compiled once."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from pydicom.datadict import (
    DicomDictionary,
    dictionary_has_tag,
    dictionary_VR,
    keyword_dict,
    private_dictionary_VR,
    repeater_has_tag,
)

from talaria.model.errors import ConfigError

#: No path goes deeper, and no data set is followed deeper.
DEPTH_LIMIT = 32

_ITEM = re.compile(r"\[([0-9]{1,5})\]\.", re.ASCII)
_NUMBER = re.compile(r"([0-9a-f]{4}),([0-9a-f]{4})", re.ASCII | re.IGNORECASE)
_PRIVATE = re.compile(r"([0-9a-f]{4}),(?:([0-9a-f]{2})xx|xx([0-9a-f]{2}))/(.+)", re.ASCII | re.IGNORECASE)
_CREATOR = re.compile(r"[\x20-\x5B\x5D-\x7E]{1,64}", re.ASCII)

#: Names that older rules know as elements and that stand elsewhere here (PS3.10 table 7.1-1).
_STANDS_FOR = MappingProxyType(
    {"MediaStorageSOPClassUID": "SOPClassUID", "MediaStorageSOPInstanceUID": "SOPInstanceUID"}
)
#: Answered without looking into the data set: the transfer syntax, and a file name that does not exist.
TRANSFER_SYNTAX_NAME = "TransferSyntaxUID"
_NOT_IN_DATA_SET = frozenset({TRANSFER_SYNTAX_NAME, "Filename"})


@dataclass(frozen=True, kw_only=True)
class Step:
    """One element on the way to a value."""

    group: int
    element: int
    """Its number; of a private element with a *creator* only the last two hexadecimal digits count."""
    vr: str
    """By the dictionary, perhaps several joined by " or "; `UN` where none knows it."""
    creator: str | None = None
    """Private creator whose block holds the element (PS3.5 7.8.1)."""
    item: int | None = None
    """The item of this sequence that the path goes on in, counted from 0; None for the last step."""


@dataclass(frozen=True, kw_only=True)
class TagPath:
    """A name that was understood."""

    name: str
    """As it is spelt in `Tags`."""
    steps: tuple[Step, ...]
    """From the top level down; empty for what does not stand in the data set."""


def resolve(name: str) -> TagPath:
    """
    What a name means: a keyword of PS3.6, `gggg,eeee`, `gggg,eexx/PRIVATE CREATOR`, or a path through sequences.

    Keywords and hexadecimal digits may be written in any case; a private creator may not. `gggg,xxee/CREATOR` is
    taken as well, and means the same.

    Raises:
        ConfigError: In no dictionary, malformed, or not an element of an instance's data set; says what is near.

    >>> resolve("modality").name
    'Modality'
    >>> resolve("requestattributessequence[0].ScheduledProcedureStepid").name
    'RequestAttributesSequence[0].ScheduledProcedureStepID'
    >>> resolve("SeriesDescripton")
    Traceback (most recent call last):
    talaria.model.errors.ConfigError: no DICOM element is called 'SeriesDescripton'; did you mean SeriesDescription?
    """
    parts = _ITEM.split(name.strip())
    if len(parts) // 2 >= DEPTH_LIMIT:
        raise ConfigError(f"tag name {_shown(name)} goes through more than {DEPTH_LIMIT - 1} sequences; shorten it")
    keyword = _keyword(parts[0])
    if len(parts) == 1 and keyword in _NOT_IN_DATA_SET:
        return TagPath(name=keyword, steps=())
    spelt, steps = [], []
    for part, item in zip(parts[::2], [*parts[1::2], None], strict=True):
        text, step = _step(part, None if item is None else int(item))
        spelt.append(text if item is None else f"{text}[{int(item)}].")
        steps.append(step)
    if len(steps) == 1 and keyword in _STANDS_FOR:
        spelt = [keyword]
    return TagPath(name="".join(spelt), steps=tuple(steps))


def _step(text: str, item: int | None) -> tuple[str, Step]:
    """One part of a name: how it is spelt, and the element it names."""
    if private := _PRIVATE.fullmatch(text):
        spelt, step = _private_step(private, item)
    elif number := _NUMBER.fullmatch(text):
        spelt, step = _numbered_step(int(number[1], 16), int(number[2], 16), item)
    else:
        spelt, step = _keyword_step(text, item)
    if item is not None and step.vr not in {"SQ", "UN"}:
        raise ConfigError(f"{spelt} is no sequence and has no items; leave out [{item}]")
    return spelt, step


def _private_step(match: re.Match[str], item: int | None) -> tuple[str, Step]:
    group, number, creator = int(match[1], 16), (match[2] or match[3]).lower(), match[4].strip(" ")
    if group % 2 == 0 or group < 0x0009:
        raise ConfigError(f"group {group:04x} of tag name {_shown(match[0])} is not private; leave out the creator")
    if not _CREATOR.fullmatch(creator):
        raise ConfigError(f"private creator of tag name {_shown(match[0])} is not 1 to 64 printable ASCII characters")
    element = int(number, 16)
    vr = _private_vr(group, element, creator)
    return f"{group:04x},{number}xx/{creator}", Step(group=group, element=element, vr=vr, creator=creator, item=item)


def _private_vr(group: int, element: int, creator: str) -> str:
    try:
        return private_dictionary_VR((group << 16) | 0x1000 | element, creator)
    except KeyError:
        return "UN"


def _numbered_step(group: int, element: int, item: int | None) -> tuple[str, Step]:
    spelt = f"{group:04x},{element:04x}"
    if group < 0x0008 or group == 0xFFFE:
        raise ConfigError(f"{spelt} is not an element of an instance's data set")
    tag = (group << 16) | element
    known = dictionary_has_tag(tag) or repeater_has_tag(tag)
    if group % 2 and 0x10 <= element <= 0xFF:
        vr = "LO"  # a private creator (PS3.5 7.8.1)
    elif element == 0:
        vr = "UL"  # a group length (PS3.5 7.2)
    else:
        vr = dictionary_VR(tag) if known and not group % 2 else "UN"
    return spelt, Step(group=group, element=element, vr=vr, item=item)


def _keyword_step(text: str, item: int | None) -> tuple[str, Step]:
    keyword = _keyword(text)
    tag = keyword_dict.get(_STANDS_FOR.get(keyword, keyword))
    if tag is None or not keyword:
        raise ConfigError(_unknown(text))
    if tag < 0x00080000 or tag >= 0xFFFE0000:
        raise ConfigError(f"{keyword} is not an element of an instance's data set")
    return keyword, Step(group=tag >> 16, element=tag & 0xFFFF, vr=DicomDictionary[tag][0], item=item)


def _unknown(text: str) -> str:
    """The message for a name that no dictionary has."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,63}", text):
        return (
            f"{_shown(text)} is not a tag name; write a keyword (Modality), gggg,eeee, gggg,eexx/PRIVATE CREATOR, "
            "or a path (RequestAttributesSequence[0].ScheduledProcedureStepID)"
        )
    near = difflib.get_close_matches(text.lower(), _spellings(), n=1, cutoff=0.9)
    near = near or difflib.get_close_matches(text.lower(), _spellings(), n=3, cutoff=0.7)
    hint = f"; did you mean {' or '.join(_spellings()[word] for word in near)}?" if near else ""
    return f"no DICOM element is called {_shown(text)}{hint}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


@functools.cache
def _spellings() -> Mapping[str, str]:
    """Every keyword that can be asked for, by its lower-case form."""
    return {name.lower(): name for name in (*keyword_dict, *_NOT_IN_DATA_SET) if name}


def _keyword(text: str) -> str:
    """PS3.6's spelling of a keyword written in any case; *text* itself if it is none."""
    return _spellings().get(text.lower(), text)


class Level:
    """
    What is wanted of one data set or item; built by `TagList`, read by the scanner, never changed afterwards.

    A *slot* is a place in the list of values found. A code below 0 in `little` and `big` is something that the
    scanner must stop at: `Level.END`, `Level.NOTHING`, `Level.CREATOR`, or `Level.SEQUENCE` - n for the nth sequence.
    """

    END = -1
    """A delimiter of items or sequences."""
    NOTHING = -2
    """(0000,0000): padding behind the data set, no element."""
    CREATOR = -3
    """A private creator of a group in which private elements are wanted."""
    SEQUENCE = -16
    """A sequence into whose items the scanner goes."""

    def __init__(self, paths: Mapping[str, tuple[Step, ...]], *, required: Iterable[str]) -> None:
        here = {name: steps[0] for name, steps in paths.items() if len(steps) == 1}
        hidden = {name: resolve(name).steps[0] for name in required}
        elements = sorted({_identity(s): s for s in (*hidden.values(), *here.values())}.items())
        slots = {identity: slot for slot, (identity, _) in enumerate(elements)}
        self.vrs = tuple(step.vr for _, step in elements)
        """By slot, from the dictionary."""
        self.public = sum(step.creator is None for _, step in elements)
        """Slots from here on are private elements with a creator."""
        names: dict[int, str] = {}
        aliases = []
        for name, step in here.items():
            slot = slots[_identity(step)]
            if names.setdefault(slot, name) != name:
                aliases.append((name, slot))
        self.names = tuple(names.get(slot, "") for slot in range(len(elements)))
        """By slot; empty for what is read, and not asked for."""
        self.aliases = tuple(aliases)
        """Further names of a slot."""
        self.required = {name: slots[_identity(step)] for name, step in hidden.items()}
        """The slots of what is always read."""
        self.sequences = _sequences(paths)
        """By number: the sequence, and the items wanted of it, each with its own level."""
        self.sequence_slots = tuple(slots.get(_identity(step)) for step, _ in self.sequences)
        """By number: the slot of a sequence that is wanted itself, not only for what is in it."""
        self.creators = {
            (group << 16) | element: slot
            for slot, ((private, group, element, _), _) in enumerate(elements)
            if group % 2 and element <= 0xFF and not private
        }
        """Tag -> slot of the private creators that are wanted for themselves."""
        self.private = self._private(elements)
        """(group, creator) -> the last two digits of an element and its code."""
        codes = dict(self._codes(elements))
        self.little = MappingProxyType({(element << 16) | group: code for (group, element), code in codes.items()})
        """Tag as one little-endian number -> slot or code."""
        self.big = MappingProxyType({(group << 16) | element: code for (group, element), code in codes.items()})
        """The same for big endian."""

    def _codes(self, elements: list[tuple["_Identity", Step]]) -> Iterable[tuple[tuple[int, int], int]]:
        for slot, (_, step) in enumerate(elements):
            if step.creator is None:
                yield (step.group, step.element), slot
        for number, (step, _) in enumerate(self.sequences):
            if step.creator is None:
                yield (step.group, step.element), Level.SEQUENCE - number
        for group, _ in self.private:
            for block in range(0x10, 0x100):
                yield (group, block), Level.CREATOR
        for delimiter in (0xE000, 0xE00D, 0xE0DD):
            yield (0xFFFE, delimiter), Level.END
        yield (0, 0), Level.NOTHING

    def _private(self, elements: list[tuple["_Identity", Step]]) -> Mapping[tuple[int, str], dict[int, int]]:
        found: dict[tuple[int, str], dict[int, int]] = {}
        coded = [(step, slot) for slot, (_, step) in enumerate(elements)]
        coded += [(step, Level.SEQUENCE - number) for number, (step, _) in enumerate(self.sequences)]
        for step, code in coded:
            if step.creator is not None:
                found.setdefault((step.group, step.creator), {})[step.element] = code
        return found


_Identity = tuple[bool, int, int, str]


def _identity(step: Step) -> _Identity:
    """What makes two steps the same element; sorts as a data set does, private elements with a creator last."""
    return (step.creator is not None, step.group, step.element, step.creator or "")


def _sequences(paths: Mapping[str, tuple[Step, ...]]) -> tuple[tuple[Step, Mapping[int, Level]], ...]:
    """Sequence, and for each item wanted of it the level below."""
    below: dict[_Identity, dict[int, dict[str, tuple[Step, ...]]]] = {}
    heads: dict[_Identity, Step] = {}
    for name, steps in paths.items():
        if len(steps) > 1 and steps[0].item is not None:
            heads[_identity(steps[0])] = steps[0]
            below.setdefault(_identity(steps[0]), {}).setdefault(steps[0].item, {})[name] = steps[1:]
    return tuple(
        (heads[key], {item: Level(inner, required=("SpecificCharacterSet",)) for item, inner in items.items()})
        for key, items in below.items()
    )


#: Always read, whatever is wanted.
_REQUIRED = ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True, eq=False)
class TagList:
    """
    The tags wanted of every data set, compiled once; shared by any number of threads.

    >>> TagList.of(["modality", "0008,0060"], ["PatientID"]).names
    ('Modality', '0008,0060', 'PatientID')
    """

    names: tuple[str, ...]
    """Each once, spelt as `resolve` spells it, in the order given."""
    top: Level
    """For the scanner."""
    known: frozenset[str]
    """The same names."""
    blank: Mapping[str, str]
    """The same names, nothing found yet."""

    @classmethod
    def of(cls, *lists: Iterable[str]) -> Self:
        """
        Compile the union of several lists of names; a name may come more than once.

        Raises:
            ConfigError: A name cannot be understood; see `resolve`.
        """
        paths = {path.name: path.steps for path in (resolve(name) for names in lists for name in names)}
        return cls(
            names=tuple(paths),
            top=Level({name: steps for name, steps in paths.items() if steps}, required=_REQUIRED),
            known=frozenset(paths),
            blank=dict.fromkeys(paths, ""),
        )

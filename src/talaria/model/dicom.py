"""DICOM's own values: UID, AE title, the tags of a series, and its three levels."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_UID = re.compile(r"[0-9](?:[0-9.]{0,62}[0-9])?", re.ASCII)
_CONFORMANT = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*", re.ASCII)
_AE_TITLE = re.compile(r"[\x20-\x5B\x5D-\x7E]{1,16}", re.ASCII)


class _CheckedText(str):
    """A `str` that is checked as it is made; pydantic reads it as text."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class UID(_CheckedText):
    """
    A DICOM unique identifier: 1 to 64 characters of `[0-9.]`, a digit first and last.

    Real devices break PS3.5 9.1 (leading zeros, empty components); such UIDs are taken, and `conformant` tells.
    A trailing NUL or blank is padding and is dropped.

    >>> UID("1.2.840.10008.1.1"), UID("1.02").conformant
    ('1.2.840.10008.1.1', False)
    >>> UID("../etc")
    Traceback (most recent call last):
    ValueError: '../etc' is not a UID: 1 to 64 digits and dots, a digit first and last
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if type(text) is cls:
            return text
        stripped = text.rstrip("\0 ").lstrip(" ")
        if not _UID.fullmatch(stripped):
            raise ValueError(f"{text[:80]!r} is not a UID: 1 to 64 digits and dots, a digit first and last")
        return super().__new__(cls, stripped)

    @property
    def conformant(self) -> bool:
        """Whether it keeps to PS3.5 9.1 in full."""
        return _CONFORMANT.fullmatch(self) is not None


class AETitle(_CheckedText):
    r"""
    An application entity title: 1 to 16 characters, printable ASCII without backslash, not all blanks (PS3.5 6.2).

    Leading and trailing blanks carry no meaning and are dropped.

    >>> AETitle(" CT1 ")
    'CT1'
    >>> AETitle("A\\B")
    Traceback (most recent call last):
    ValueError: 'A\\B' is not an AE title: 1 to 16 printable ASCII characters, no backslash, not all blanks
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        stripped = text.strip(" ")
        if not _AE_TITLE.fullmatch(stripped):
            raise ValueError(
                f"{text[:40]!r} is not an AE title: 1 to 16 printable ASCII characters, no backslash, not all blanks"
            )
        return super().__new__(cls, stripped)


class Tags(Mapping[str, str]):
    """
    The recorded tags of one instance, which stand for its series.

    Keys are the names they were asked for by: a keyword of PS3.6, `gggg,eeee`, `gggg,eexx/PRIVATE CREATOR`, or a
    path through sequences (`RequestAttributesSequence[0].ScheduledProcedureStepID`). Values are text, several values
    joined by a backslash. A name that was looked for and not found is a key with the value `""` and is listed in
    `absent`; a name that was not looked for is no key at all. Look-up ignores case.
    """

    __slots__ = ("_lower", "_values", "absent")

    def __init__(self, values: Mapping[str, str | None]) -> None:
        self.absent = frozenset(name for name, value in values.items() if value is None)
        self._values = {name: value or "" for name, value in values.items()}
        self._lower: dict[str, str] | None = None

    @classmethod
    def of(cls, values: dict[str, str], absent: frozenset[str]) -> "Tags":
        """
        What the constructor makes, where it is known already which names are *absent*; the receiver's fast way.

        Args:
            values: All names; those of *absent* with the value `""`. Kept as it is, not copied.
        """
        tags = cls.__new__(cls)
        tags._values, tags.absent, tags._lower = values, absent, None  # noqa: SLF001 - its own
        return tags

    def __getitem__(self, name: str) -> str:
        value = self._values.get(name)
        return value if value is not None else self._values[self._spelled(name)]

    def _spelled(self, name: str) -> str:
        """The key that differs from *name* in case only; KeyError where there is none."""
        if self._lower is None:
            self._lower = {key.lower(): key for key in self._values}
        return self._lower[name.lower()]

    @property
    def plain(self) -> Mapping[str, str]:
        """The same, by the names exactly as recorded: for what looks up a million times a second."""
        return self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self[name]
        except KeyError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tags) and self._values == other._values and self.absent == other.absent

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"<Tags of {len(self)} names>"  # never the values: they name a patient

    def with_values(self, values: Mapping[str, str | None]) -> "Tags":
        """The same tags with some values replaced or added."""
        missing = frozenset(name for name, value in values.items() if value is None)
        merged = {**self._values, **{name: value or "" for name, value in values.items()}}
        return Tags.of(merged, self.absent.difference(values) | missing)

    def as_document(self) -> dict[str, str | None]:
        """As kept in the ledger: every name looked for, None where it was absent."""
        return {name: None if name in self.absent else value for name, value in self._values.items()}

    def to_json(self) -> str:
        """`as_document` as compact JSON."""
        return json.dumps(self.as_document(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Tags":
        """What `to_json` wrote."""
        return cls(json.loads(text))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.dict_schema(core_schema.str_schema(), core_schema.nullable_schema(core_schema.str_schema())),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.as_document),
        )


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who sent an instance to whom (PS3.7 D.3.3, PS3.10 table 7.1-1)."""

    calling_ae: str
    """Calling AE title, as text: what a peer calls itself is not always an AE title."""
    called_ae: str
    """Called AE title."""
    address: str
    """The peer's network address, without its port; empty if it did not come over a network."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One SOP instance in the spool."""

    id: str
    """ULID given on arrival; the file's name in the spool."""
    sop_instance_uid: UID
    sop_class_uid: UID
    series_instance_uid: UID
    study_instance_uid: UID
    transfer_syntax_uid: UID
    size_bytes: int
    """Of the data set, without preamble and file meta information."""
    sha256: str
    """Of the data set, as received, in hex."""
    spool: str
    """Name of the spool that holds it."""
    received: datetime
    """When its last byte was safe; UTC."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What is known of a series so far."""

    id: int
    series_instance_uid: UID
    study_instance_uid: UID
    tags: Tags
    """Of its first instance received."""
    instances: int
    first_received: datetime
    last_received: datetime


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is known of a study so far."""

    id: int
    study_instance_uid: UID
    series: tuple[Series, ...]

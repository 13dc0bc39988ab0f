"""
The errors that Talaria raises on purpose; anything else is a bug, and the job that met it is held.

    TalariaError
    ├── ConfigError             what a person wrote is wrong: file, rulebook, argument
    │   ├── RuleError           the same, at a column of a rule
    │   └── WrongSchema         the ledger is of another version of Talaria
    ├── Transient               may pass by itself: try again later
    │   ├── Congested           the peer said so, perhaps with a time to come back
    │   ├── NoRoom              the disk, its inodes or a quota is full (A700)
    │   └── LedgerAway          the database cannot be reached
    ├── Permanent               will not pass without a person: do not try again
    │   ├── NotAnInstance       bytes that cannot be understood as a DICOM instance (C000)
    │   └── Mismatch            the data set is not what its C-STORE command says (A900)
    └── Refused                 an act that the state of things does not allow
        └── Overtaken           somebody else was first; look again

Messages say who, what, with which value, what to do: lower case, no full stop, no patient data.
"""

from dataclasses import dataclass
from datetime import timedelta


class TalariaError(Exception):
    """Parent of every error raised on purpose."""


class ConfigError(TalariaError):
    """What a person wrote is wrong; says where and what to do."""


class WrongSchema(ConfigError):
    """The ledger's schema is older or newer than this code's; no service may touch it."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in a text, both counted from 1; *column* counts characters."""

    line: int
    column: int


class RuleError(ConfigError):
    """
    A rule that cannot be compiled, or that broke while it ran.

    Attributes:
        message: What is wrong, without the place.
        position: Where in *source*.
        source: The rule as written.
    """

    def __init__(self, message: str, *, position: Position, source: str) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.source = source

    def __str__(self) -> str:
        return f"{self.message} (line {self.position.line}, column {self.position.column})"

    @property
    def caret(self) -> str:
        """The offending line of the rule with a caret under the column; two lines."""
        lines = self.source.splitlines() or [""]
        line = lines[min(self.position.line, len(lines)) - 1]
        start = max(0, self.position.column - 1 - 60)
        return f"{line[start : start + 120]}\n{' ' * (self.position.column - 1 - start)}^"


class Transient(TalariaError):
    """May pass by itself; the job is deferred."""


class Congested(Transient):
    """
    The far end asked for patience.

    Attributes:
        retry_after: How long it asked for, if it said.
    """

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoRoom(Transient):
    """Nothing more can be written here; answered A700 to a sender."""


class LedgerAway(Transient):
    """The database cannot be reached or cannot write."""


class Permanent(TalariaError):
    """Will not pass without a person; the job fails."""


class NotAnInstance(Permanent):
    """The bytes cannot be understood as a DICOM instance; answered C000 to a sender."""


class Mismatch(Permanent):
    """The data set is not the instance that its command names; answered A900 to a sender."""


class Refused(TalariaError):
    """The state of things does not allow this act."""


class Overtaken(Refused):
    """Somebody else changed it first; nothing was done."""

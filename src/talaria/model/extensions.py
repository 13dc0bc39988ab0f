"""
Everything that can be plugged in, on one page: target, executor, built-in module, and what each is handed.

A plug is one file on a shelf. Its fields *are* its settings: pydantic checks them, and their docstrings are the
documentation. `kind` is the word that a rulebook calls it by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from talaria.model.dicom import Origin, Tags


class Plug(BaseModel):
    """What every plug has in common: checked, frozen settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    kind: ClassVar[str]


class Standing(StrEnum):
    """Where one instance stands at one target."""

    PENDING = "pending"
    SENT = "sent"
    WARNED = "warned"
    """Accepted, with a warning."""
    VERIFIED = "verified"
    FAILED = "failed"
    """Will not be accepted as it is; not tried again by itself."""

    @property
    def is_there(self) -> bool:
        """Whether the far end has it."""
        return self in {Standing.SENT, Standing.WARNED, Standing.VERIFIED}


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One instance to be delivered."""

    instance_id: str
    """ULID of the instance."""
    path: Path
    """The Part 10 file in the spool; read only."""
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    study_instance_uid: str
    size_bytes: int
    """Of the data set."""
    sha256: str
    """Of the data set, in hex."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a target is asked to deliver: only what is not there yet."""

    id: str
    """ULID; the same on every attempt."""
    job_id: int
    attempt: int
    study_instance_uid: str
    rule: str
    origin: Origin
    """Who sent the originals: for return to sender and for AE titles passed through."""
    tags: Tags
    """Of the first series: for layouts."""
    parcels: tuple[Parcel, ...]
    """To be sent now, in order."""
    total: int
    """Instances in the whole delivery, those already there included."""
    extras: Mapping[str, Path] = field(default_factory=dict)
    """What travels besides DICOM, by file name: results of a module."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one instance at one target."""

    instance_id: str
    standing: Standing
    detail: str = ""
    """The far end's answer in words, where it is worth keeping."""
    status: int | None = None
    """DIMSE status or HTTP status, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check found."""

    ok: bool
    text: str


Findings = tuple[Finding, ...]


class Target(Plug):
    """
    Where deliveries go.

    A target is made anew for each attempt and used by one thread. The caller may stop the iterator of `deliver` at
    any point (hold, cancel) by closing it; what was yielded is what counts as done.
    """

    concurrency: ClassVar[int] = 2
    """Deliveries to one target at a time, where its settings say nothing."""

    @property
    def lanes(self) -> int:
        """How many deliveries may be under way at once."""
        return self.concurrency

    @property
    def reads(self) -> tuple[str, ...]:
        """Tags that its settings speak of, to be recorded of every series."""
        return ()

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """
        Deliver every parcel; an outcome for each, yielded as soon as the far end has it.

        The same delivery again ends as after the first time.

        Raises:
            Transient: The far end cannot take it now; what was yielded stands.
            Permanent: It never will; what was yielded stands.
        """
        raise NotImplementedError

    def check(self) -> Findings:
        """
        Reach the far end without leaving anything there; what it accepts, in words.

        Raises:
            Transient, Permanent: As `deliver` would.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run of a module may use."""

    timeout: timedelta = timedelta(hours=1)
    memory_bytes: int = 8 << 30
    output_bytes: int = 64 << 30
    """All files of the output folder together."""
    output_files: int = 100_000
    log_bytes: int = 1 << 20
    """How much of the log is kept: its end."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One step of a chain, ready to be run."""

    job_id: int
    attempt: int
    step: int
    module: str
    """Its name in the rulebook."""
    builtin: str | None
    """The built-in module it names, or None."""
    image: str | None
    """The container image it names, or None."""
    folder: Path
    """Holds `in/` and `out/`; the job's own."""
    environment: Mapping[str, str]
    limits: Limits

    @property
    def input(self) -> Path:
        """What the step reads."""
        return self.folder / "in"

    @property
    def output(self) -> Path:
        """What the step writes."""
        return self.folder / "out"


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a run ended."""

    code: int
    reason: str
    """In words; empty when all went well."""
    log: str
    """The end of what it printed."""

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return self.code == 0 and not self.reason


class Stop(Protocol):
    """Asked now and then by whatever takes long."""

    def __call__(self) -> bool:
        """Whether to give up: the service stops, or the job was cancelled or taken away."""


class Executor(Plug):
    """
    What runs modules.

    A run is started once and followed to its end, perhaps by another process than the one that started it: the
    handle is kept in the ledger.
    """

    def submit(self, run: Run) -> str:
        """
        Start one step.

        Returns:
            A handle by which `follow` finds the run again, also after our restart.

        Raises:
            Transient: It could not be started now (engine away, no room).
            Permanent: It can never be started (no such module).
        """
        raise NotImplementedError

    def follow(self, handle: str, run: Run, *, stop: Stop) -> Exit | None:
        """
        Wait for the run to end; nothing of it is left running when this returns or raises.

        Returns:
            How it ended; None when no run of that handle is known any more.

        Raises:
            Stopped: *stop* said so; the run was killed.
            Transient: The engine went away in the middle.
        """
        raise NotImplementedError


class Stopped(Exception):
    """A long act was told to stop and has stopped."""


class Module(Plug):
    """
    A built-in module: runs in a child process, sees `in/` and `out/` only.

    Its fields are the settings that a rule may give.
    """

    def run(self, source: Path, destination: Path, task: Mapping[str, Any]) -> None:
        """Read *source*, write *destination*; an exception fails the step, and its text is the reason."""
        raise NotImplementedError

"""What the items of a rulebook may say: their keys, types and bounds, as pydantic checks them, before references."""

import re
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from talaria.model.dicom import AETitle
from talaria.model.quantity import Rate, Size, Span, Window
from talaria.model.retention import Retention
from talaria.model.wording import did_you_mean

NAME_LIMIT = 64
_NAME = re.compile(r"\w(?:[\w .+()@-]*[\w.+()@-])?")


def check_name(name: str) -> str:
    """
    The name of a rule, target, module or sender, as it stands in addresses of pages, commands and logs.

    1 to 64 characters: letters and digits of any language, `_`, and inside also blank and `. + - ( ) @`, beginning
    with a letter or digit, without `..`, in Unicode's composed form (NFC), so that equal names are equal bytes.

    Raises:
        ValueError: It is something else.

    >>> check_name("Thorax CT (low dose)")
    'Thorax CT (low dose)'
    >>> check_name("a/b")
    Traceback (most recent call last):
    ValueError: 'a/b' is no name; use 1 to 64 letters, digits, blanks and _ . + - ( ) @, without '..'
    """
    is_name = len(name) <= NAME_LIMIT and _NAME.fullmatch(name) and ".." not in name
    if not is_name or unicodedata.normalize("NFC", name) != name:
        allowed = f"1 to {NAME_LIMIT} letters, digits, blanks and _ . + - ( ) @, without '..'"
        raise ValueError(f"{name[:NAME_LIMIT]!r} is no name; use {allowed}")
    return name


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        hint = did_you_mean(str(name), available_timezones())
        raise ValueError(f"time zone {str(name)[:60]!r} is not known{hint}") from None


def _network(text: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(text))
    except ValueError as error:
        raise ValueError(f"{error}; write an address such as 10.0.1.5 or a network such as 10.0.1.0/24") from None


def _truth_as_rule(written: object) -> object:
    """`when: true` means the rule `True`."""
    return str(written) if isinstance(written, bool) else written


def _as_step(written: object) -> object:
    """A module's name alone is a step without settings of its own."""
    return {"module": written} if isinstance(written, str) else written


_TEXT = WithJsonSchema({"type": "string"})

Text = Annotated[str, Field(max_length=10_000)]
Names = Annotated[tuple[str, ...], Field(max_length=1000)]
Zone = Annotated[ZoneInfo, PlainValidator(_zone), _TEXT]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network), _TEXT]
RuleText = Annotated[str, BeforeValidator(_truth_as_rule)]


class Trigger(StrEnum):
    """What a rule waits for and acts on."""

    SERIES = "series"
    STUDY = "study"


class Collect(StrEnum):
    """Which series of a study its case takes in."""

    STUDY = "study"
    """Every one."""
    MATCHING = "matching"
    """Those that match the rule themselves."""


class Action(StrEnum):
    """What a rule does with what it matched."""

    ROUTE = "route"
    PROCESS = "process"
    NOTIFY = "notify"
    DISCARD = "discard"


class Late(StrEnum):
    """What becomes of instances that come after the case was closed."""

    NEW = "new"
    """They are sent alone."""
    WHOLE = "whole"
    """The whole case goes through again."""
    HOLD = "hold"
    """A person decides."""


class Form(BaseModel):
    """What all that is written in a rulebook has in common: checked, frozen, no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)


class Item(Form):
    """What every named item of a rulebook may say about itself."""

    owner: Text = ""
    """Whom to ask about it."""
    comment: Text = ""
    """Why it is there."""
    tags: Names = ()
    """Labels to find it by; they mean nothing else."""


class Settings(Form):
    """What holds for all rules."""

    series_quiet: Span = Field(default="60s", validate_default=True)
    """A series is complete when nothing new came for this long."""
    study_quiet: Span = Field(default="15m", validate_default=True)
    """A study is complete when nothing new came for this long."""
    retention: Retention = Retention()
    """How long cases are kept after they ended."""
    off_peak: Window = Field(default="22:00-06:00", validate_default=True)
    """When work of priority `offpeak` may begin; local time."""
    time_zone: Zone = Field(default="UTC", validate_default=True)
    """Of `off_peak`, of windows, and of `now` in rules."""
    extra_tags: Names = ()
    """Tags to record besides the usual ones and those that rules read."""
    record_days: Annotated[int, Field(ge=1, le=36500)] = 400
    """How long the recorded tags of a series are kept for back-tests."""


class Unknown(StrEnum):
    """What a listener does with a sender that is not listed."""

    ACCEPT = "accept"
    QUARANTINE = "quarantine"
    REFUSE = "refuse"


class Listener(Item):
    """A called AE title that is answered."""

    unknown: Unknown = Unknown.ACCEPT
    """What happens to a sender that is not listed in `senders`."""


class Sender(Item):
    """A peer that is known; all that is given must fit."""

    ae: AETitle | None = None
    """Its calling AE title."""
    address: Network | None = None
    """The address or network it calls from."""
    certificate: Text | None = None
    """The subject of its TLS certificate."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.ae or self.address or self.certificate):
            raise ValueError("names nobody; give at least one of: ae, address, certificate")
        return self


class Retry(Form):
    """How a delivery that may pass is tried again."""

    first: Span = Field(default="5s", validate_default=True)
    """Before the second attempt."""
    most: Span = Field(default="10m", validate_default=True)
    """No gap is longer."""
    budget: Span = Field(default="72h", validate_default=True)
    """Older than this it fails with the last reason."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.first <= self.most <= self.budget:
            raise ValueError("should rise: first, then most, then budget")
        return self


class TargetOptions(Item):
    """What every target may say, whatever its kind."""

    kind: str
    """Which plug of the shelf it is."""
    retry: Retry = Retry()
    """How a delivery that may pass is tried again."""
    verify: Literal["none", "commitment", "query", "hash"] = "none"
    """How it is made sure that the far end has what was sent."""
    window: Window | None = None
    """Deliveries begin only then; local time."""
    bandwidth: Rate | None = None
    """No more than this, all deliveries to the target together."""


class ModuleForm(Item):
    """A module: a container image, or one that is built in."""

    image: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """The container image, with its registry and tag."""
    builtin: str | None = None
    """The name of a built-in module."""
    settings: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Given to the module; a rule can override each key."""
    timeout: Span = Field(default="1h", validate_default=True)
    """A run that takes longer is stopped and fails."""
    memory: Size = Field(default="8g", validate_default=True)
    """A run that needs more is killed."""
    gpu: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs for each run."""
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    """CPUs for each run; all, where it is not said."""
    network: Text = "none"
    """The container network it may use."""
    sandbox: Literal["strict", "mercure"] = "strict"
    """How far it is shut in."""
    pull: Literal["never", "schedule", "always"] = "schedule"
    """When a newer image is looked for."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Variables for each run."""
    volumes: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Folders of the host that it sees."""
    writable_input: bool = False
    """Whether it may write in its input folder, which is then a copy."""
    may_be_empty: bool = False
    """Whether a run without any output file is a success."""
    persistence: Text | None = None
    """The name of a folder that is kept from run to run."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many runs at once."""
    executor: str | None = None
    """What runs it."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.image is None) == (self.builtin is None):
            raise ValueError("should have either an image or a builtin")
        return self


class StepForm(Form):
    """One step of a chain."""

    module: str
    """Its name in `modules`."""
    settings: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Keys that override those of the module."""


class CompletionForm(Form):
    """When a case is complete, where the settings do not say it."""

    quiet: Span | None = None
    """When nothing new came for this long."""
    series: Text | None = None
    """When series with these descriptions have come."""
    give_up: Span = Field(default="90m", validate_default=True)
    """With `series`: how long that may take."""
    then: Literal["discard", "proceed", "wait"] = "discard"
    """With `series`: what becomes of it after that."""
    released: bool = False
    """At the release of the association, where the evidence says that all has come."""


class RoutingForm(Form):
    """Whether a module may choose where its results go."""

    allowed: Names = ()
    """Targets it may name; none given means those of `send`."""
    alternate: str | None = None
    """The target that it can ask for without naming it."""


class Notice(Form):
    """A message to people."""

    channel: str
    """Its name in `channels`."""
    events: tuple[Literal["received", "completed", "failed", "requested"], ...] = ("failed",)
    """When it is sent."""
    text: Text = ""
    """A template."""


class RuleForm(Item):
    """A rule as written."""

    when: RuleText
    """The expression that must hold."""
    trigger: Trigger = Trigger.SERIES
    """What it waits for and acts on."""
    collect: Collect = Collect.STUDY
    """With trigger study: which series the case takes in."""
    complete: CompletionForm = CompletionForm()
    """When the case is complete."""
    action: Action = Action.ROUTE
    """What is done."""
    process: Annotated[tuple[Annotated[StepForm, BeforeValidator(_as_step)], ...], Field(max_length=100)] = ()
    """The chain of modules, in order."""
    keep_inputs: bool = False
    """Whether the originals are sent besides the results."""
    send: Names = ()
    """The targets."""
    dynamic_routing: RoutingForm | None = None
    """Whether the last module may choose the targets."""
    priority: Literal["normal", "urgent", "offpeak"] = "normal"
    """Which work goes first."""
    late: Late | None = None
    """What becomes of late instances; `new` when routing and `whole` when processing, where it is not said."""
    fallback: bool = False
    """Whether it is asked only when nothing else matched."""
    disabled: bool = False
    """Whether it is passed over."""
    resend: bool = False
    """Whether a duplicate is sent again."""
    notify: tuple[Notice, ...] = ()
    """Messages to people."""
    promise: Span | None = None
    """From the last image to delivered; people are told when it is missed."""

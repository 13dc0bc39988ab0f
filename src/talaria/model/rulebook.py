"""The rulebook: rules, targets and modules as one checked, immutable, numbered revision, made from text."""

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from talaria.model.dicom import AETitle, Tags
from talaria.model.document import (
    DocumentError,
    Entry,
    Listing,
    Node,
    Place,
    Problem,
    Scalar,
    Table,
    locate,
    plain,
    read,
)
from talaria.model.errors import ConfigError, Position, RuleError
from talaria.model.extensions import Executor, Limits, Module, Target
from talaria.model.forms import (
    Action,
    Collect,
    Late,
    Listener,
    ModuleForm,
    Notice,
    RoutingForm,
    RuleForm,
    Sender,
    Settings,
    StepForm,
    TargetOptions,
    Trigger,
    Unknown,
    check_name,
)
from talaria.model.job import Patience, Priority
from talaria.model.quantity import spoken
from talaria.model.recorded import ASSOCIATION_NAMES, RECORDED
from talaria.model.rules import Context, Expression, compile_rule
from talaria.model.taglist import resolve as resolve_element
from talaria.model.wording import did_you_mean, in_words, keys_at, kind_of

__all__ = [
    "Action",
    "Collect",
    "Late",
    "Listener",
    "ModuleEntry",
    "Problem",
    "Rule",
    "Rulebook",
    "RulebookError",
    "Sender",
    "Settings",
    "Shelves",
    "Step",
    "TargetEntry",
    "Trigger",
    "Unknown",
    "parse",
]

SECTIONS = (
    "settings", "listeners", "senders", "targets", "groups", "executors", "modules", "channels", "alerts", "rules",
    "tests",
)  # fmt: skip

#: The listener where the rulebook names none.
DEFAULT_LISTENER = AETitle("TALARIA")

_PRIORITIES = {"normal": Priority.NORMAL, "urgent": Priority.URGENT, "offpeak": Priority.OFFPEAK}

#: Keys of a module that shape a container and nothing else.
_CONTAINER_KEYS = ("gpu", "cpus", "network", "sandbox", "pull", "volumes", "persistence", "writable_input")


class RulebookError(DocumentError):
    """
    A rulebook that is refused, whole.

    Attributes:
        problems: Everything that is wrong with it, in the order of the lines.
    """


def _given(value: JsonValue) -> bool:
    return value not in (None, "", [], {}, False)  # a tuple, since lists have no hash


#: What the contract knows and this version has no service for: where, what of it, and what is said of it.
#: A later version deletes its lines.
_NOT_YET: tuple[tuple[Place, Callable[[JsonValue], bool], str], ...] = (
    (("groups",), _given, "groups of targets are not available in this version"),
    (("executors",), _given, "executors are not available in this version; built-in modules need none"),
    (("channels",), _given, "channels are not available in this version"),
    (("alerts",), _given, "alerts are not available in this version"),
    (("tests",), _given, "tests are not available in this version"),
    (("listeners", "*", "unknown"), lambda value: value == "quarantine", "quarantine is not available in this version"),
    (("senders", "*", "certificate"), _given, "certificates of senders are not available in this version"),
    (
        ("targets", "*", "verify"),
        lambda value: isinstance(value, str) and value in {"commitment", "query", "hash"},
        "verification is not available in this version; leave it out or write none",
    ),
    (("targets", "*", "window"), _given, "windows of time are not available in this version"),
    (("targets", "*", "bandwidth"), _given, "limits of bandwidth are not available in this version"),
    (("targets", "*", "tls"), _given, "TLS to targets is not available in this version"),
    (("modules", "*", "image"), _given, "needs an executor for containers, which is not on the shelf yet"),
    (("rules", "*", "notify"), _given, "notices are not available in this version"),
    (("rules", "*", "action"), lambda value: value == "notify", "action notify is not available in this version"),
    (("rules", "*", "dynamic_routing"), _given, "routing by a module's word is not available in this version"),
    (("rules", "*", "promise"), _given, "promises are not available in this version: nothing would watch over them"),
    (("rules", "*", "resend"), _given, "sending identical images again is not available in this version"),
    (("rules", "*", "complete", "series"), _given, "completion by a list of series is not available in this version"),
    (("rules", "*", "complete", "released"), _given, "completion at release is not available in this version"),
)

#: Action -> (the keys it needs, the keys it must not have).
_ACTION_KEYS: Mapping[Action, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Action.ROUTE: (("send",), ("process",)),
    Action.PROCESS: (("process",), ()),
    Action.NOTIFY: ((), ("send", "process")),
    Action.DISCARD: ((), ("send", "process")),
}


@dataclass(frozen=True, kw_only=True)
class Shelves:
    """The plugs that exist, by kind."""

    targets: Mapping[str, type[Target]] = field(default_factory=dict)
    modules: Mapping[str, type[Module]] = field(default_factory=dict)
    executors: Mapping[str, type[Executor]] = field(default_factory=dict)
    missing: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(shelf, kind) -> what it needs, of plugs whose library is not installed."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What every item says about itself."""

    owner: str = ""
    """Whom to ask about it."""
    comment: str = ""
    """Why it is there."""
    tags: tuple[str, ...] = ()
    """Labels; they mean nothing else."""


@dataclass(frozen=True, kw_only=True)
class TargetEntry(Described):
    """A target under its name."""

    name: str
    plug: Target
    """Its checked settings, ready to deliver."""
    patience: Patience
    """How a delivery that may pass is tried again."""


@dataclass(frozen=True, kw_only=True)
class ModuleEntry(Described):
    """A module under its name."""

    name: str
    builtin: str | None
    """The built-in module it is, or None."""
    image: str | None
    """The container image it is, or None."""
    settings: Mapping[str, JsonValue]
    """Before a rule overrides them."""
    limits: Limits
    """What one run may use."""
    gpu: int
    cpus: float | None
    """None: all."""
    network: str
    sandbox: str
    pull: str
    environment: Mapping[str, str]
    volumes: Mapping[str, JsonValue]
    writable_input: bool
    may_be_empty: bool
    """Whether a run without any output file is a success."""
    persistence: str | None
    concurrency: int
    """Runs at once."""
    executor: str
    """What runs it; `process` for built-in modules."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a chain."""

    module: str
    """Its name in the rulebook."""
    settings: Mapping[str, JsonValue]
    """Those of the module, overridden key by key at the top level by those of the rule."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Whether the last module of a chain may choose where its results go."""

    allowed: tuple[str, ...]
    """Targets it may name."""
    alternate: str | None
    """The target it can ask for without naming it."""


@dataclass(frozen=True, kw_only=True)
class Rule(Described):
    """A rule, ready to be asked."""

    name: str
    when: str
    """As written."""
    expression: Expression
    """`when`, compiled."""
    trigger: Trigger
    collect: Collect
    quiet: timedelta | None
    """Its own quiet time; None: that of the settings."""
    action: Action
    process: tuple[Step, ...]
    """The chain; empty unless the action is process."""
    keep_inputs: bool
    """Whether the originals are sent besides the results."""
    send: tuple[str, ...]
    """Names of targets, each once."""
    dynamic_routing: Routing | None
    priority: Priority
    late: Late
    fallback: bool
    disabled: bool
    resend: bool
    notify: tuple[Notice, ...]
    promise: timedelta | None


@dataclass(frozen=True, kw_only=True)
class Rulebook:
    """One revision of everything that people decide about the flow of images."""

    number: int
    """Of the revision; 0 for one that is not kept."""
    text: str
    """As it was written, to the letter."""
    settings: Settings
    listeners: Mapping[AETitle, Listener]
    """Never empty."""
    senders: Mapping[str, Sender]
    targets: Mapping[str, TargetEntry]
    modules: Mapping[str, ModuleEntry]
    rules: tuple[Rule, ...]
    """In the order of the text."""
    warnings: tuple[Problem, ...] = ()
    """What is worth knowing and stands in nobody's way."""

    def rule(self, name: str) -> Rule:
        """
        The rule of that name.

        Raises:
            ConfigError: There is none.
        """
        for rule in self.rules:
            if rule.name == name:
                return rule
        hint = did_you_mean(name, [rule.name for rule in self.rules])
        raise ConfigError(f"rule {name!r} is not in rulebook {self.number}{hint}")

    def quiet_of(self, rule: Rule) -> timedelta:
        """How long a series must be quiet before the rule is asked."""
        if rule.trigger is Trigger.SERIES and rule.quiet is not None:
            return rule.quiet
        return self.settings.series_quiet

    def study_quiet_of(self, rule: Rule) -> timedelta:
        """How long a study must be quiet before a study rule acts on it."""
        return rule.quiet if rule.quiet is not None else self.settings.study_quiet

    @property
    def recorded_names(self) -> tuple[str, ...]:
        """The tags to record of every series, each once: usual ones, extra ones, those that rules and targets read."""
        read_by_rules = [name for rule in self.rules for name in sorted(rule.expression.names)]
        extra = [recorded_name(name) for name in self.settings.extra_tags]
        layouts = [recorded_name(name) for entry in self.targets.values() for name in entry.plug.reads]
        names = dict.fromkeys([*RECORDED, *extra, *read_by_rules, *layouts])
        return tuple(name for name in names if name not in ASSOCIATION_NAMES)


_ASSOCIATION = {name.lower(): name for name in ASSOCIATION_NAMES}


def recorded_name(name: str) -> str:
    """
    The name under which a tag is recorded, for one that a person wrote in a rule.

    Raises:
        ConfigError: No dictionary knows it; says what is near.

    >>> recorded_name("modality"), recorded_name("senderaet")
    ('Modality', 'SenderAET')
    """
    return _ASSOCIATION.get(name.lower()) or resolve_element(name).name


def parse(text: str, *, shelves: Shelves, number: int = 0) -> Rulebook:
    """
    Check a rulebook.

    Args:
        text: YAML, as a person wrote it; `document.decoded` makes it from a file's bytes.
        shelves: The plugs that exist.
        number: Of the revision.

    Raises:
        RulebookError: It cannot be used; tells everything that is wrong with it.
    """
    try:
        document = read(text)
    except DocumentError as error:
        raise RulebookError(error.problems) from None
    reading = _Reading(root=document.root, shelves=shelves, problems=list(document.repeated))
    book = reading.rulebook(text, number=number)
    if reading.problems or book is None:
        raise RulebookError(tuple(reading.problems))
    return book


F = TypeVar("F", bound=BaseModel)


@dataclass(kw_only=True)
class _Reading:
    """One rulebook being checked; collects what is wrong and goes on."""

    root: Table
    shelves: Shelves
    problems: list[Problem]
    refused: set[Place] = field(default_factory=set)
    modules: dict[str, ModuleEntry] = field(default_factory=dict)

    def rulebook(self, text: str, *, number: int) -> Rulebook | None:
        """The rulebook; None, or one with holes, where something is wrong."""
        self._check_sections()
        self._refuse_what_is_not_yet()
        settings = self._settings()
        listeners = self._listeners()
        senders = {name: self.checked(Sender, place, _written(node)) for name, place, node in self.items("senders")}
        targets = {name: self._target(name, place, node) for name, place, node in self.items("targets")}
        for name, place, node in self.items("modules"):
            self._module(name, place, node)
        rules = [self._rule(name, place, node) for name, place, node in self.items("rules")]
        if settings is None:
            return None
        book = Rulebook(
            number=number,
            text=text,
            settings=settings,
            listeners=MappingProxyType(listeners),
            senders=MappingProxyType(_without_holes(senders)),
            targets=MappingProxyType(_without_holes(targets)),
            modules=MappingProxyType(self.modules),
            rules=tuple(rule for rule in rules if rule is not None),
        )
        return book if self.problems else self._with_warnings(book)

    # -- places and problems --

    def problem(self, place: Place, message: str, *, position: Position | None = None, caret: str = "") -> None:
        """Note what is wrong; not where something is refused as a whole anyway."""
        if any(place[: len(refused)] == refused for refused in self.refused):
            return
        position = position or locate(self.root, place)[0]
        self.problems.append(Problem(place=place, position=position, message=message, caret=caret))

    def node(self, place: Place) -> Node | None:
        """What is written at a place, if anything is."""
        return locate(self.root, place)[1]

    def items(self, section: str) -> Iterator[tuple[str, Place, Table]]:
        """The named items of a section, those that are mappings."""
        written = self.node((section,))
        if written is None or not _given(plain(written)):
            return
        if not isinstance(written, Table):
            self.problem((section,), f"should be a mapping of names, is {kind_of(plain(written))}")
            return
        for name, entry in written.entries.items():
            yield from self._item((section, name), entry)

    def _item(self, place: Place, entry: Entry) -> Iterator[tuple[str, Place, Table]]:
        try:
            name = AETitle(str(place[1])) if place[0] == "listeners" else check_name(str(place[1]))
        except ValueError as error:
            self.problem(place, str(error), position=entry.position)
            return
        node = entry.node
        if isinstance(node, Scalar) and node.value is None:
            node = Table(position=entry.position, entries={}, weight=1, height=1)
        if isinstance(node, Table):
            yield name, place, node
        else:
            self.problem(place, f"should be a mapping such as {{key: value}}, is {kind_of(plain(node))}")

    def checked(
        self, form: type[F], place: Place, values: Mapping[str, JsonValue], *, may_lack: bool = False
    ) -> F | None:
        """*values* as a form or plug; None where they do not fit it, which is then noted (but not what may lack)."""
        try:
            return form.model_validate_json(json.dumps(values), strict=True)
        except ConfigError as error:
            self.problem(place, str(error))
        except ValidationError as error:
            for detail in error.errors(include_input=False, include_url=False):
                if not (may_lack and detail["type"] == "missing"):
                    self._note(form, place, detail, values)
        return None

    def _note(self, form: type[BaseModel], place: Place, detail: ErrorDetails, values: Mapping[str, JsonValue]) -> None:
        where = detail["loc"]
        keys = keys_at(form, where[:-1])
        if issubclass(form, Target) and len(where) == 1:
            keys = (*keys, *TargetOptions.model_fields)
        self.problem((*place, *where), in_words(detail, value=_at(values, where), keys=keys))

    # -- sections --

    def _check_sections(self) -> None:
        for name in self.root.entries:
            if name not in SECTIONS:
                self.problem((name,), f"unknown section{did_you_mean(name, SECTIONS)}")
        if "rules" not in self.root.entries:
            self.problem(("rules",), "is missing; an empty rulebook says `rules: {}`")

    def _refuse_what_is_not_yet(self) -> None:
        for pattern, is_refused, message in _NOT_YET:
            for place in _matching(self.root, pattern):
                written = self.node(place)
                if written is not None and is_refused(plain(written)):
                    self.problem(place, message)
                    self.refused.add(place)

    def _settings(self) -> Settings | None:
        written = self.node(("settings",))
        if written is not None and not isinstance(written, Table) and plain(written) is not None:
            self.problem(("settings",), f"should be a mapping such as {{key: value}}, is {kind_of(plain(written))}")
        settings = self.checked(Settings, ("settings",), _written(written))
        for number, name in enumerate(settings.extra_tags if settings else ()):
            try:
                resolve_element(name)
            except ConfigError as error:
                self.problem(("settings", "extra_tags", number), str(error))
        return settings

    def _listeners(self) -> dict[AETitle, Listener]:
        checked: dict[AETitle, Listener | None] = {}
        for name, place, node in self.items("listeners"):
            if name in checked:
                self.problem(place, f"AE title {name!r} is given twice; blanks around it mean nothing")
            checked[AETitle(name)] = self.checked(Listener, place, _written(node))
        return _without_holes(checked) or {DEFAULT_LISTENER: Listener()}

    def _target(self, name: str, place: Place, node: Table) -> TargetEntry | None:
        written = _written(node)
        own = {key: value for key, value in written.items() if key not in TargetOptions.model_fields}
        options = self.checked(TargetOptions, place, {key: value for key, value in written.items() if key not in own})
        kind = self._plug((*place, "kind"), "targets", self.shelves.targets)
        plug = self.checked(kind, place, own) if kind else None
        if options is None or plug is None:
            return None
        retry = Patience(first=options.retry.first, most=options.retry.most, budget=options.retry.budget)
        return TargetEntry(
            name=name, plug=plug, patience=retry, owner=options.owner, comment=options.comment, tags=options.tags
        )

    def _plug(self, place: Place, shelf: str, kinds: Mapping[str, type[F]]) -> type[F] | None:
        """The plug that is named at *place*."""
        written = self.node(place)
        if not isinstance(written, Scalar) or not isinstance(written.value, str):
            return None  # the form has said so
        kind = written.value
        if kind in kinds:
            return kinds[kind]
        if (shelf, kind) in self.shelves.missing:
            self.problem(place, f"{place[-1]} {kind!r} {self.shelves.missing[shelf, kind]}")
        else:
            there = ", ".join(sorted(kinds)) or "none"
            hint = did_you_mean(kind, kinds)
            self.problem(place, f"{place[-1]} {kind[:80]!r} is not on the shelf; there are: {there}{hint}")
        return None

    def _module(self, name: str, place: Place, node: Table) -> None:
        form = self.checked(ModuleForm, place, _written(node))
        kind = self._plug((*place, "builtin"), "modules", self.shelves.modules)
        if kind is not None and form is not None:
            self.checked(kind, (*place, "settings"), form.settings, may_lack=True)
        if form is not None and form.executor not in {None, "process"} and not form.image:
            self.problem((*place, "executor"), f"executor {form.executor!r} is not defined; there is: process")
        if form is not None:
            self.modules[name] = _module_entry(name, form)

    def _rule(self, name: str, place: Place, node: Table) -> Rule | None:
        form = self.checked(RuleForm, place, _written(node))
        expression = self._expression((*place, "when"))
        self._check_action(place)
        self._check_targets((*place, "send"))
        self._check_targets((*place, "dynamic_routing", "allowed"))
        self._check_targets((*place, "dynamic_routing", "alternate"))
        self._check_modules((*place, "process"))
        if form is None or expression is None:
            return None
        steps = [self._step((*place, "process", number), step) for number, step in enumerate(form.process)]
        return _rule_of(name, form, expression=expression, steps=tuple(steps))

    def _expression(self, place: Place) -> Expression | None:
        written = self.node(place)
        if not isinstance(written, Scalar) or not isinstance(written.value, str | bool):
            return None  # the form has said so
        try:
            return compile_rule(str(written.value), resolve=recorded_name)
        except RuleError as error:
            position = _position_in(written, error.position)
            message = f"{error.message} (column {error.position.column} of the rule)"
            self.problem(place, message, position=position, caret=error.caret)
        return None

    def _check_action(self, place: Place) -> None:
        written = self.node((*place, "action"))
        word = written.value if isinstance(written, Scalar) and written.value is not None else Action.ROUTE
        if word not in set(Action):
            return  # the form has said so
        action = Action(str(word))
        needed, forbidden = _ACTION_KEYS[action]
        for key in needed:
            if not self._is_given((*place, key)):
                self.problem(place, f"action {action} needs {key}")
        for key in forbidden:
            if self._is_given((*place, key)):
                self.problem((*place, key), f"action {action} takes no {key}")

    def _is_given(self, place: Place) -> bool:
        written = self.node(place)
        return written is not None and _given(plain(written))

    def _check_targets(self, place: Place) -> None:
        known = [*self._names("targets"), *self._names("groups")]
        for name, position in _texts(self.node(place)):
            if name not in known:
                message = f"target {name[:80]!r} is not defined{did_you_mean(name, known)}"
                self.problem(place, message, position=position)

    def _check_modules(self, place: Place) -> None:
        known = self._names("modules")
        written = self.node(place)
        for item in written.items if isinstance(written, Listing) else ():
            node = item.entries["module"].node if isinstance(item, Table) and "module" in item.entries else item
            for name, position in _texts(node):
                if name not in known:
                    message = f"module {name[:80]!r} is not defined{did_you_mean(name, known)}"
                    self.problem(place, message, position=position)

    def _names(self, section: str) -> list[str]:
        """What a section defines, whether it is right or not."""
        written = self.node((section,))
        return list(written.entries) if isinstance(written, Table) else []

    def _step(self, place: Place, form: StepForm) -> Step:
        module = self.modules.get(form.module)
        settings = {**(module.settings if module else {}), **form.settings}
        kind = self.shelves.modules.get(module.builtin or "") if module else None
        if kind is not None:
            self.checked(kind, (*place, "settings"), settings)
        return Step(module=form.module, settings=MappingProxyType(settings))

    # -- warnings --

    def _with_warnings(self, book: Rulebook) -> Rulebook:
        found = [*_about_senders(book), *_about_modules(self), *_about_rules(book), *_about_order(book)]
        warnings = (
            Problem(place=place, position=locate(self.root, place)[0], message=message) for place, message in found
        )
        return replace(book, warnings=tuple(sorted(warnings, key=Problem.order)))


# -- from what is written to what is meant --

V = TypeVar("V")
K = TypeVar("K")


def _without_holes(mapping: Mapping[K, V | None]) -> dict[K, V]:
    """What could be made; the holes have been noted as problems."""
    return {key: value for key, value in mapping.items() if value is not None}


def _written(node: Node | None) -> dict[str, JsonValue]:
    """The keys that say something; a key without a value counts as not given."""
    entries = node.entries if isinstance(node, Table) else {}
    values = {key: plain(entry.node) for key, entry in entries.items()}
    return {key: value for key, value in values.items() if value is not None}


def _at(values: Mapping[str, JsonValue], where: Sequence[str | int]) -> JsonValue:
    """The value at a place; None where there is none."""
    here: JsonValue = dict(values)
    for step in where:
        if isinstance(here, dict) and isinstance(step, str):
            here = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            return None
    return here


def _matching(root: Table, pattern: Place) -> Iterator[Place]:
    """The places that are written and fit a pattern; `*` stands for any key."""
    head, rest = pattern[0], pattern[1:]
    for key, entry in root.entries.items():
        if head not in {"*", key}:
            continue
        if not rest:
            yield (key,)
        elif isinstance(entry.node, Table):
            yield from ((key, *below) for below in _matching(entry.node, rest))


def _texts(node: Node | None) -> Iterator[tuple[str, Position]]:
    """A text, or each of a list of texts, with its place."""
    for item in node.items if isinstance(node, Listing) else (node,):
        if isinstance(item, Scalar) and isinstance(item.value, str):
            yield item.value, item.position


def _position_in(written: Scalar, inner: Position) -> Position:
    """Where in the document a place in a text of it is, as far as it can be told."""
    start = written.position
    if written.style == "|":
        return Position(line=start.line + inner.line, column=1)
    if inner.line > 1 or written.style == ">":
        return start
    quote = 1 if written.style else 0
    return Position(line=start.line, column=start.column + quote + inner.column - 1)


def _module_entry(name: str, form: ModuleForm) -> ModuleEntry:
    return ModuleEntry(
        name=name,
        builtin=form.builtin,
        image=form.image,
        settings=MappingProxyType(dict(form.settings)),
        limits=Limits(timeout=form.timeout, memory_bytes=form.memory),
        gpu=form.gpu,
        cpus=form.cpus,
        network=form.network,
        sandbox=form.sandbox,
        pull=form.pull,
        environment=MappingProxyType(dict(form.environment)),
        volumes=MappingProxyType(dict(form.volumes)),
        writable_input=form.writable_input,
        may_be_empty=form.may_be_empty,
        persistence=form.persistence,
        concurrency=form.concurrency,
        executor=form.executor or ("process" if form.builtin else "docker"),
        owner=form.owner,
        comment=form.comment,
        tags=form.tags,
    )


def _rule_of(name: str, form: RuleForm, *, expression: Expression, steps: tuple[Step, ...]) -> Rule:
    return Rule(
        name=name,
        when=form.when,
        expression=expression,
        trigger=form.trigger,
        collect=form.collect,
        quiet=form.complete.quiet,
        action=form.action,
        process=steps,
        keep_inputs=form.keep_inputs,
        send=tuple(dict.fromkeys(form.send)),
        dynamic_routing=_routing(form.dynamic_routing, send=form.send),
        priority=_PRIORITIES[form.priority],
        late=form.late or (Late.WHOLE if form.action is Action.PROCESS else Late.NEW),
        fallback=form.fallback,
        disabled=form.disabled,
        resend=form.resend,
        notify=form.notify,
        promise=form.promise,
        owner=form.owner,
        comment=form.comment,
        tags=form.tags,
    )


def _routing(form: RoutingForm | None, *, send: tuple[str, ...]) -> Routing | None:
    return Routing(allowed=form.allowed or send, alternate=form.alternate) if form else None


# -- what is worth knowing --

Finding = tuple[Place, str]


def _about_senders(book: Rulebook) -> Iterator[Finding]:
    if book.senders:
        return
    for title, listener in book.listeners.items():
        if listener.unknown is Unknown.REFUSE:
            yield ("listeners", title), "refuses whoever is not in senders, and nobody is: nothing is received"
        else:
            yield ("senders",), f"nobody is listed: listener {title!r} accepts every calling AE title"


def _about_modules(reading: _Reading) -> Iterator[Finding]:
    for name, place, node in reading.items("modules"):
        module = reading.modules.get(name)
        for key in _CONTAINER_KEYS if module and module.builtin else ():
            if key in node.entries:
                yield (*place, key), "has no effect on a built-in module, which has no container"


def _about_rules(book: Rulebook) -> Iterator[Finding]:
    if all(rule.disabled for rule in book.rules):
        kept = book.settings.retention.discarded
        end = f"kept for {spoken(kept)} and then deleted" if kept is not None else "kept for ever"
        yield ("rules",), f"no rule is asked: whatever arrives is {end}"
    for rule in book.rules:
        yield from ((("rules", rule.name, *below), message) for below, message in _about_rule(rule))


def _about_rule(rule: Rule) -> Iterator[Finding]:
    if rule.disabled:
        yield (), "is disabled and never asked"
    if _is_always_true(rule) and not rule.fallback:
        yield ("when",), "is always true"
    if rule.collect is not Collect.STUDY and rule.trigger is Trigger.SERIES:
        yield ("collect",), "has no effect with trigger series"
    if rule.action is Action.PROCESS:
        if not rule.send:
            yield (), "sends nothing: the results of the modules stay here until retention ends"
        return
    if rule.keep_inputs:
        yield ("keep_inputs",), "has no effect without process"
    if rule.dynamic_routing:
        yield ("dynamic_routing",), "has no effect without process"


def _about_order(book: Rulebook) -> Iterator[Finding]:
    """Discard ends the evaluation, and wins over what matched before it."""
    asked = [rule for rule in book.rules if not rule.disabled and not rule.fallback]
    fallbacks = [rule for rule in book.rules if not rule.disabled and rule.fallback]
    for number, rule in enumerate(asked):
        if rule.action is not Action.DISCARD:
            continue
        if number:
            yield ("rules", rule.name), f"discard wins over rules that matched before it: {_few(asked[:number])}"
        if _is_always_true(rule):
            for never in [*asked[number + 1 :], *fallbacks]:
                yield ("rules", never.name), f"is never asked: rule {rule.name!r} discards everything before it"
            return
    for rule in asked:
        if _is_always_true(rule):
            for never in fallbacks:
                yield ("rules", never.name), f"is never asked: rule {rule.name!r} always matches"
            return


def _few(rules: Sequence[Rule]) -> str:
    names = ", ".join(rule.name for rule in rules[:5])
    return f"{names} and {len(rules) - 5} more" if len(rules) > 5 else names


def _is_always_true(rule: Rule) -> bool:
    """Whether a rule reads nothing and holds: `True`, `1 == 1`."""
    try:
        tree = ast.parse(rule.when.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # written in the older notation, which reads tags
    if any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        return False
    nothing = Context(tags=Tags({}), now=datetime(2000, 1, 1, tzinfo=UTC), count=0, series=())
    try:
        return rule.expression.matches(nothing)
    except RuleError:
        return False

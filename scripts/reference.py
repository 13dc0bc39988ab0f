"""Writes the pages of docs/reference that come from the code; `--check` only says which of them are stale."""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from talaria import registry
from talaria.cli import main as command_line
from talaria.model import forms, functions, quantity
from talaria.model.bounds import STEP_LIMIT
from talaria.model.config import SECRET_KEYS, Config
from talaria.model.dicom import AETitle
from talaria.model.extensions import Plug
from talaria.model.recorded import ASSOCIATION_NAMES, RECORDED
from talaria.model.retention import Retention
from talaria.model.rulebook import _NOT_YET, SECTIONS
from talaria.model.taglist import resolve
from talaria.store import schema
from talaria.store.schema import metadata

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py from the code; change it there, then run `make docs`. -->"

#: Keys that have another default on each machine.
FOLLOWS_HOME = {"home": "see text", "database_url": "ledger.db in the home", "spool": "spool in the home"}

#: `float_` in the code is `float` in a rule.
TRAILING = re.compile(r"\b([a-z]+[0-9]*)_(?!\w)")

#: Where the examples of a validator's kind are told.
WRITTEN = {
    "span": "duration",
    "duration": "duration or `never`",
    "size": "size",
    "rate": "rate",
    "_zone": "time zone",
    "_network": "address or network",
    "_truth_as_rule": "rule",
    "_as_step": "module, or `{module, settings}`",
}


# -- what a setting may be, in words --


def kind_in_words(annotation: object, metadata_: Sequence[object] = ()) -> str:
    """How a value of this type is written."""
    metadata_ = [part for item in metadata_ for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    for item in metadata_:
        name = getattr(getattr(item, "func", None), "__name__", "")
        if name in WRITTEN:
            return WRITTEN[name]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_in_words(arguments[0], arguments[1:])
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(kind_in_words(one) for one in arguments if one is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in {tuple, list}:
        return f"list of: {kind_in_words(arguments[0])}"
    if origin in {dict, Mapping} or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "mapping"
    return _plain_kind(annotation) + _bounds(metadata_)


def _plain_kind(annotation: object) -> str:
    if not isinstance(annotation, type):
        return "any value"
    if issubclass(annotation, StrEnum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if issubclass(annotation, BaseModel):
        return f"[{_heading(annotation)}](#{_heading(annotation).replace(' ', '-')})"
    names: tuple[tuple[type, str], ...] = (
        (bool, "true or false"), (int, "whole number"), (float, "number"), (AETitle, "AE title"), (SecretStr, "text"),
        (Path, "path"), (quantity.Window, "window of time"), (str, "text"),
    )  # fmt: skip
    return next((words for type_, words in names if issubclass(annotation, type_)), annotation.__name__)


def _bounds(metadata_: Sequence[object]) -> str:
    """The least and the most of a number, where they are given."""
    found = {name: getattr(item, name) for item in metadata_ for name in ("ge", "gt", "le") if hasattr(item, name)}
    least = f"from {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    most = f"to {found['le']}" if "le" in found else ""
    return f", {least} {most}".rstrip() if least or most else ""


def as_written(value: object) -> str:
    """A default as a person would write it."""
    if value is None or value in ("", (), []) or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    if isinstance(value, BaseModel):
        return ""
    return str(value)


def _duration(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds % unit == 0 and seconds > unit:
            return f"{seconds // unit}{letter}"
    return f"{seconds}s"


def default_of(field: FieldInfo, *, required: str = "required") -> str:
    """The default of a field, in a table's cell."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return required
    if value is None and "duration or `never`" in kind_in_words(field.annotation, field.metadata):
        return "`never`"
    text = as_written(value)
    return f"`{text}`" if text else ""


def _heading(model: type[BaseModel]) -> str:
    """What a form is called on its page."""
    return model.__name__.removesuffix("Form").removesuffix("Entry").lower()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(text) for text in row) + " |"
    yield ""


def fields_table(model: type[BaseModel], *, leave_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """The fields of a form: key, what it is, default, meaning."""
    rows = [
        (f"`{name}`", kind_in_words(field.annotation, field.metadata), default_of(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in leave_out
    ]
    yield from table(("Key", "Is", "Default", "Means"), rows)


def described(thing: type) -> str:
    """A docstring as a paragraph."""
    return inspect.getdoc(thing) or ""


# -- commands --


def commands() -> Iterator[str]:
    """Every command with its help, arguments and options."""
    yield "# Commands\n"
    yield "Exit code 0: done; 1: failed, or found wrong; 2: unusable arguments. Errors go to standard error."
    yield "A command that prints a table prints JSON with `--json`.\n"
    yield "```text"
    yield "talaria [--config FILE] COMMAND ..."
    yield "```\n"
    for path, command in all_commands(command_line, ()):
        yield from _command(path, command)


def all_commands(group: click.Group, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Commands that do something, by their full names."""
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from all_commands(command, (*above, name))
        else:
            yield (*above, name), command


def _command(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path[-1])
    usage = " ".join(["talaria", *path, *command.collect_usage_pieces(context)])
    yield f"## talaria {' '.join(path)}\n"
    yield f"```text\n{usage}\n```\n"
    yield (inspect.cleandoc(command.help or "")) + "\n"
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        yield from table(("Option", "Default", "Means"), [_option(option) for option in options])


def _option(option: click.Option) -> tuple[str, str, str]:
    metavar = "" if option.is_flag else " " + option.make_metavar(click.Context(click.Command("x")))
    default = "required" if option.required else ""
    if not option.required and not option.is_flag and isinstance(option.default, str | int) and option.default != "":
        default = f"`{option.default}`"
    return f"`{', '.join(option.opts)}{metavar}`", default, option.help or ""


# -- configuration --


def configuration() -> Iterator[str]:
    """Every key of talaria.toml."""
    yield "# Configuration of a machine\n"
    yield "What one machine is told at start: ports, paths, limits, secrets. What happens to images stands in the"
    yield "[rulebook](rulebook.md).\n"
    yield "The file is the one of `--config`, else the one named by `TALARIA_CONFIG`, else `talaria.toml` in the home;"
    yield "it may be missing. Every key can also be given as a variable of the environment, which wins over the file."
    yield "An unknown key in the file is an error; an unknown `TALARIA_...` variable is ignored. A relative path is"
    yield "taken from the home, `~/` from the user's own folder. A duration is written `90s`, `15m`, `2h` or `3d`, a"
    yield "size in bytes `512m` or `8g`.\n"
    rows = [
        (
            f"`{name}`", f"`TALARIA_{name.upper()}`", kind_in_words(field.annotation, field.metadata),
            default_of(field, required=FOLLOWS_HOME.get(name, "secret.key in the home")), field.description or "",
        )
        for name, field in Config.model_fields.items()
    ]  # fmt: skip
    yield from table(("Key", "Variable", "Is", "Default", "Means"), rows)
    secret = ", ".join(f"`TALARIA_{key.upper()}_FILE`" for key in sorted(SECRET_KEYS))
    yield f"Secrets can be given as a file, by {secret}. A file with a secret that others can read is refused.\n"
    yield "`talaria check` says whether the configuration can be used.\n"


# -- rulebook --

#: Section -> what its items are, and the forms that stand in it.
_SECTIONS: tuple[tuple[str, type[BaseModel], tuple[type[BaseModel], ...]], ...] = (
    ("settings", forms.Settings, (Retention,)),
    ("listeners", forms.Listener, ()),
    ("senders", forms.Sender, ()),
    ("targets", forms.TargetOptions, (forms.Retry,)),
    ("modules", forms.ModuleForm, ()),
    ("rules", forms.RuleForm, (forms.StepForm, forms.CompletionForm, forms.RoutingForm, forms.Notice)),
)


def rulebook() -> Iterator[str]:
    """Every section and key of a rulebook."""
    yield "# The rulebook\n"
    yield "One YAML file (YAML 1.2 core schema: `on`, `NO` and `22:00` are text; a key given twice is an error) says"
    yield "what happens to images. `talaria check FILE` validates one, `talaria apply FILE` makes it run as a new"
    yield "revision, `talaria export` prints the one that runs. A rulebook with an error is refused whole, and the"
    yield "running one stays; a warning is printed and stands in nobody's way.\n"
    yield f"Its sections, each optional, in any order: {', '.join(f'`{name}`' for name in SECTIONS)}."
    yield "`rules: {}` alone is a rulebook.\n"
    yield "Durations are written `90s`, `15m`, `2h`, `3d`, and where it makes sense `never`; sizes `512m`, `8g`; rates"
    yield '`20m/s`; windows of time `"22:00-06:00"`.\n'
    for name, form, inner in _SECTIONS:
        yield f"## {name}\n"
        yield described(form) + "\n"
        yield from fields_table(form)
        for below in inner:
            yield f"### {_heading(below)}\n"
            yield described(below) + "\n"
            yield from fields_table(below)
    yield from _words()
    yield from _refused()


def _words() -> Iterator[str]:
    yield "## Names\n"
    yield described_function(forms.check_name) + "\n"


def _refused() -> Iterator[str]:
    """What the format knows and this version has nothing for."""
    yield "## Refused in this version\n"
    yield "The format has a place for these, but nothing in this version acts on them. A rulebook that uses one is"
    yield "refused, so that nobody relies on what does not happen.\n"
    rows = [(f"`{'.'.join(str(step) for step in place)}`", message) for place, _, message in _NOT_YET]
    yield from table(("Where", "Message"), rows)


def described_function(function: Callable[..., object]) -> str:
    """The first paragraphs of a docstring, up to its sections and examples."""
    text = inspect.getdoc(function) or ""
    for end in ("\n\nArgs:", "\n\nReturns:", "\n\nRaises:", "\n\n>>>", "\n\nSource:"):
        text = text.partition(end)[0]
    return text


# -- plugs --


def targets() -> Iterator[str]:
    """Every kind of target."""
    yield "# Targets\n"
    yield "Where deliveries go. A target stands under its name in the rulebook's `targets`; `kind` says which of these"
    yield "it is. Besides the keys of its kind, each takes those of [every target](rulebook.md#targets): `retry`,"
    yield "`owner`, `comment`, `tags`.\n"
    yield from _plugs(registry.discover().targets)


def modules() -> Iterator[str]:
    """Every built-in module."""
    yield "# Built-in modules\n"
    yield "What runs without a container. A module stands under its name in the rulebook's `modules`, as"
    yield "`{builtin: KIND, settings: {...}}`; its other keys are those of [every module](rulebook.md#modules). A rule"
    yield "can override single settings.\n"
    yield "A module runs in a child process with limits on time, memory and output, as the user that runs Talaria: this"
    yield "keeps a module from using too much, not one that means harm.\n"
    yield from _plugs(registry.discover().modules)


def _plugs(plugs: Mapping[str, type[Plug]]) -> Iterator[str]:
    for kind in sorted(plugs):
        yield f"## {kind}\n"
        yield described(plugs[kind]) + "\n"
        if plugs[kind].model_fields:
            yield from fields_table(plugs[kind])
        else:
            yield "It has no settings.\n"


# -- the rule language --


def rules_language() -> Iterator[str]:
    """Functions, methods, attributes and constants of rules."""
    yield "# Rules: what can be called\n"
    yield "How rules are written is told in [Rules](../explanation/rules.md); this page lists what they can use."
    yield f"A rule that takes more than {STEP_LIMIT:,} steps is in error.\n"
    yield "## Functions\n"
    rows = [(f"`{f.text}`", _first_line(f.documentation), _example(f.documentation)) for f in _functions()]
    yield from table(("Function", "Answers", "Example"), rows)
    yield "## Methods\n"
    rows_ = [
        (kind.__name__, ", ".join(f"`{name}`" for name in sorted(methods)))
        for kind, methods in functions.METHODS.items()
    ]
    yield from table(("Of", "Methods"), rows_)
    yield "## Attributes of dates and times\n"
    rows_ = [
        (kind.__name__, ", ".join(f"`{name}`" for name in sorted(names)))
        for kind, names in functions.ATTRIBUTES.items()
    ]
    yield from table(("Of", "Attributes"), rows_)
    yield f"## Constants\n\n{', '.join(f'`{name}`' for name in sorted(functions.CONSTANTS))}\n"


def _functions() -> list[functions.RuleFunction]:
    return [functions.FUNCTIONS[name] for name in sorted(functions.FUNCTIONS)]


def _first_line(documentation: str) -> str:
    return documentation.partition("\n\n")[0]


def _example(documentation: str) -> str:
    """The first line of its doctest and what it answers, with the names that rules use."""
    lines = documentation.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(">>> ") and number + 1 < len(lines):
            asked = TRAILING.sub(r"\1", line[4:])
            return f"`{asked}` is `{lines[number + 1]}`"
    return ""


# -- tags --


def tags() -> Iterator[str]:
    """What is recorded of every series."""
    yield "# Recorded tags\n"
    yield "These are recorded of the first instance received of every series, and a rule can read them. So can"
    yield "every tag that a rule or `settings.extra_tags` names. Look-up ignores case.\n"
    yield f"From the association: {', '.join(f'`{name}`' for name in ASSOCIATION_NAMES)}.\n"
    yield from table(("Tag", "Element"), [(f"`{name}`", _element(name)) for name in sorted(RECORDED)])


def _element(name: str) -> str:
    """The element of a name, `gggg,eeee`."""
    steps = resolve(name).steps
    return " > ".join(f"({step.group:04X},{step.element:04X})" for step in steps)


# -- the ledger --


def ledger() -> Iterator[str]:
    """The ledger's tables, with what the comments beside them say."""
    yield "# Tables of the ledger\n"
    yield "For those who look into the database. Tables may change with any version; moments are UTC.\n"
    comments = schema_comments()
    for each in metadata.sorted_tables:
        yield f"## {each.name}\n"
        if comments.get((each.name, "")):
            yield comments[each.name, ""] + "\n"
        rows = [
            (f"`{c.name}`", _column_kind(c), _column_key(c), comments.get((each.name, c.name), ""))
            for c in each.columns
        ]
        yield from table(("Column", "Type", "Key", "Means"), rows)


def schema_comments() -> Mapping[tuple[str, str], str]:
    """(table, column) -> the comment beside it; (table, "") -> the one above it."""
    found: dict[tuple[str, str], str] = {}
    above: list[str] = []
    name = ""
    for line in inspect.getsource(schema).splitlines():
        if line.startswith("#: "):
            above.append(line[3:])
        elif opened := re.match(r"(\w+) = Table\(", line):
            name = opened[1]
            found[name, ""] = " ".join(above)
        elif column := re.match(r' +Column\("(\w+)".*?\)(?:,  # (.*))?$', line):
            found[name, column[1]] = column[2] or ""
        if not line.startswith("#: "):
            above = []
    return found


def _column_kind(column: "sa.Column[Any]") -> str:
    name = {"BigInteger": "integer", "UTCTime": "moment", "String": "text", "LargeBinary": "bytes", "Float": "number"}
    kind = type(column.type).__name__
    return name.get(kind, kind.lower()) + (", may be null" if column.nullable else "")


def _column_key(column: "sa.Column[Any]") -> str:
    keys = sorted(f"`{key.target_fullname}`" for key in column.foreign_keys)
    return ", ".join([*(["primary"] if column.primary_key else []), *keys])


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands.md": commands,
    "configuration.md": configuration,
    "rulebook.md": rulebook,
    "targets.md": targets,
    "modules.md": modules,
    "rules-language.md": rules_language,
    "tags.md": tags,
    "ledger.md": ledger,
}


def page(name: str) -> str:
    """The text of one page, as the code says now."""
    return f"{NOTE}\n\n" + "\n".join(PAGES[name]()).rstrip() + "\n"


def stale(folder: Path) -> list[str]:
    """Names of the pages in *folder* that are not what the code says, or that nothing writes."""
    there = {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.md"))}
    return sorted(name for name in {*PAGES, *there} if name not in PAGES or there.get(name) != page(name))


def main() -> int:
    """Write the pages; or with `--check` say which are stale, and return 1 if one is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    if parser.parse_args().check:
        found = stale(FOLDER)
        for name in found:
            print(f"docs/reference/{name} is stale; run `make docs`", file=sys.stderr)
        return 1 if found else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (FOLDER / name).write_text(page(name), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

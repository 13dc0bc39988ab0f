"""The documentation says what the program does: links lead somewhere, commands exist, examples are accepted."""

import doctest
import importlib
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import talaria
from talaria import registry
from talaria.cli import main
from talaria.model import forms
from talaria.model.config import Config
from talaria.model.retention import Retention
from talaria.model.rulebook import Shelves, parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
sys.path.insert(0, str(ROOT / "scripts"))  # it is no package, and need not be one for its users
reference = importlib.import_module("reference")

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


@cache
def text_of(page: Path) -> str:
    """A page."""
    return page.read_text("utf-8")


def prose_of(page: Path) -> str:
    """A page without its examples, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text_of(page)))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The examples of a page in a language, without their indentation."""
    for indentation, found, body in FENCED.findall(text_of(page)):
        if found.strip() == language:
            yield "\n".join(line.removeprefix(indentation) for line in body.splitlines()) + "\n"


def with_pages() -> pytest.MarkDecorator:
    """Once for each page, called by its path."""
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@with_pages()
def test_links_lead_somewhere(page: Path) -> None:
    """
    Every relative link and image names a file that is there, and a heading that is on it.
    """
    for link in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page

        assert there.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{link}: no such heading"


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_reference_is_current(name: str) -> None:
    """
    The pages of docs/reference are what the code says; `make docs` writes them.
    """
    written = (reference.FOLDER / name).read_text("utf-8")

    assert reference.page(name) == written


def test_reference_has_no_page_that_nothing_writes() -> None:
    """
    A page whose source is gone is stale.
    """
    assert [] == reference.stale(reference.FOLDER)


def test_stale_page_is_named(tmp_path: Path) -> None:
    """
    A page that was changed by hand, one that is missing and one that nothing writes are told.
    """
    for name in reference.PAGES:
        (tmp_path / name).write_text(reference.page(name), "utf-8")
    (tmp_path / "tags.md").write_text("changed", "utf-8")
    (tmp_path / "targets.md").unlink()
    (tmp_path / "left-over.md").touch()

    assert ["left-over.md", "tags.md", "targets.md"] == reference.stale(tmp_path)


SOURCES = sorted(path for path in (ROOT / "src" / "talaria").rglob("*.py") if "migrations" not in path.as_posix())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_is_in_the_architecture(path: Path) -> None:
    """
    The tree in ARCHITECTURE.md is the one that is there.
    """
    assert path.name == "__init__.py" or re.search(rf"\b{path.name}\b", text_of(ROOT / "ARCHITECTURE.md"))


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_paths_that_are_named_exist(name: str) -> None:
    """
    Tests, documents and sources that are named in running text are there.
    """
    named = re.findall(r"`((?:tests|docs|src|scripts|demo|bench)/[\w/.-]*)`", text_of(ROOT / name))

    assert [] == [path for path in named if not (ROOT / path).exists()]


# -- commands --


def command_lines(page: Path) -> Iterator[list[str]]:
    """The `talaria` commands of a page's shell examples, in words."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for words in simple_commands(re.sub(r"\$\([^)]*\)", "X", line)):
                plain = without_prefix(words)
                if plain and plain[0].rpartition("/")[2] == "talaria":
                    yield plain[1:]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands that a line of shell runs; where their output goes is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    is_redirected = False
    for word in lexer:
        if word in {"&&", "||", ";", "|", "&"}:
            yield words
            words, is_redirected = [], False
        elif word in {">", ">>", "<"}:
            is_redirected = True
        elif not is_redirected:
            words.append(word)
    yield words


def without_prefix(words: list[str]) -> list[str]:
    """A command without the variables and the `sudo` before it."""
    rest = list(words)
    while rest and (re.match(r"\w+=", rest[0]) or rest[0] in {"sudo", "-u"}):
        rest = rest[2:] if rest[0] == "-u" else rest[1:]
    return rest


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that some words name, and the words that are left."""
    command: click.Command = main
    rest = list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    return command, rest


@with_pages()
def test_commands_exist(page: Path) -> None:
    """
    Every `talaria` command of an example is there, with these options and as many arguments.
    """
    for words in command_lines(page):
        command, rest = resolved(words)
        numbers = ["1" if word in {"ID", "N"} else word for word in rest]

        command.make_context(command.name, numbers)  # raises what a person would be told


def test_examples_of_commands_are_found() -> None:
    """
    The test above has something to look at.
    """
    seen = {" ".join(words[:2]) for page in PAGES for words in command_lines(page)}

    assert {"target check", "jobs retry", "studies list"} <= seen


def public_commands(group: click.Group, above: str = "talaria") -> Iterator[tuple[str, click.Command]]:
    """Every command and group by its full name."""
    for name, command in group.commands.items():
        yield f"{above} {name}", command
        if isinstance(command, click.Group):
            yield from public_commands(command, f"{above} {name}")


COMMANDS = dict(public_commands(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    """
    `--help` works everywhere, and says something.
    """
    done = CliRunner().invoke(main, [*name.split()[1:], "--help"])

    assert 0 == done.exit_code
    assert COMMANDS[name].help


# -- rulebooks --


@pytest.fixture(scope="module")
def shelves() -> Shelves:
    """The plugs there are."""
    return registry.discover()


@with_pages()
def test_rulebooks_are_accepted(page: Path, shelves: Shelves) -> None:
    """
    Every example fenced as ```yaml rulebook could be applied.
    """
    for text in blocks(page, "yaml rulebook"):
        assert text == parse(text, shelves=shelves).text


@with_pages()
def test_yaml_is_marked(page: Path) -> None:
    """
    No YAML stands in the documentation that is not tried.
    """
    assert [] == list(blocks(page, "yaml"))


def test_rulebook_of_the_demonstration_is_accepted(shelves: Shelves) -> None:
    """
    The demonstration's rulebook is accepted once its blanks are filled in.
    """
    text = (ROOT / "demo" / "rulebook.yaml").read_text("utf-8").replace("FOLDER", "/tmp").replace("PORT", "104")

    assert 2 == len(parse(text, shelves=shelves).rules)


# -- settings --

FORMS = [
    Config, Retention, forms.Settings, forms.Listener, forms.Sender, forms.TargetOptions, forms.Retry, forms.ModuleForm,
    forms.RuleForm, forms.StepForm, forms.CompletionForm, forms.RoutingForm, forms.Notice,
]  # fmt: skip


def plugs() -> list[type[BaseModel]]:
    """Every plug on the shelves."""
    found = registry.discover()
    return [*found.targets.values(), *found.modules.values(), *found.executors.values()]


@pytest.mark.parametrize("model", [*FORMS, *plugs()], ids=lambda model: model.__name__)
def test_every_setting_is_documented(model: type[BaseModel]) -> None:
    """
    A setting without a docstring is one that nobody can use.
    """
    assert [] == [name for name, field in model.model_fields.items() if not field.description]
    assert model.__doc__


def test_every_key_is_in_the_reference() -> None:
    """
    Each key of the machine's configuration stands on its page.
    """
    page = (reference.FOLDER / "configuration.md").read_text("utf-8")

    assert [] == [name for name in Config.model_fields if f"| `{name}` |" not in page]


# -- examples in the code --


def modules() -> list[str]:
    """Every module of the package that can be imported for its examples."""
    found = pkgutil.walk_packages(talaria.__path__, "talaria.")
    return [item.name for item in found if "migrations" not in item.name and not item.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_are_true(name: str) -> None:
    """
    What stands after >>> in a docstring is what comes out.
    """
    module: ModuleType = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example)

    assert 0 == runner.failures

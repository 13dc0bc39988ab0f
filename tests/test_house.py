"""The rules of the house that a program can hold."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "talaria"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "migrations/versions" not in path.as_posix())
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MOST_LINES = 60
CATCH_ALL = "services/loop.py"
MAY_PRINT = {"modules/__main__.py"}
EMPTY_NAMES = re.compile(r"(?:^|_)(?:utils?|helpers?|common|managers?|misc|data|info)(?:_|$)")
PLAIN_NAMES = {"data_set"}  # DICOM's word, not the empty one
MODEL_FORBIDS = {"sqlite3", "socket", "subprocess", "threading", "asyncio", "logging", "time", "shutil"}
MODEL_FORBIDS_CALLS = {"open", "input"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}
NEVER_IMPORTED = {"pickle", "marshal", "shelve", "dill", "unittest", "mock"}

#: From the bottom up: a layer knows those below it and none beside it.
LAYERS = (
    ("model",),
    ("store",),
    ("dimse",),
    ("targets", "channels", "executors", "modules"),
    ("registry",),
    ("services", "web"),
    ("app",),
    ("cli",),
    ("__main__",),
)
REASONED = re.compile(r"#\s*(?:type:\s*ignore(?:\[[^\]]*\])?|noqa(?::\s*[A-Z0-9, ]+?)?)(?P<rest>\s.*)?$")


def name_of(path: Path) -> str:
    """A source file as the house calls it."""
    return path.relative_to(SOURCE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, and every name that is imported from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a plain name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node


def definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions, classes and methods; not what stands inside a function or a private class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
        is_private = isinstance(child, ast.ClassDef) and child.name.startswith("_")
        if isinstance(child, ast.ClassDef | ast.If | ast.Try) and not is_private:
            yield from definitions(child)


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether it catches what nobody named; one that tidies up and raises it again does not."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    last = handler.body[-1]
    raised_again = isinstance(last, ast.Raise) and last.exc is None
    return not raised_again and any(kind is None or (isinstance(kind, ast.Name) and kind.id in BROAD) for kind in kinds)


BROAD = {"Exception", "BaseException"}


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each comment."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def with_paths(paths: list[Path]) -> pytest.MarkDecorator:
    """Once for each file, called by its path."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


@with_paths(MODULES)
def test_only_the_loop_catches_everything(path: Path) -> None:
    """
    One catch-all, in the loop that runs the workers; anything else names what it catches.
    """
    handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)]
    broad = [handler.lineno for handler in handlers if catches_all(handler)]

    assert not broad or CATCH_ALL == name_of(path), f"catches everything in line {broad}"


@with_paths(MODULES)
def test_files_are_named_for_what_they_are(path: Path) -> None:
    """
    A name that says nothing is no name.
    """
    assert path.stem in PLAIN_NAMES or not EMPTY_NAMES.search(path.stem)


@with_paths(MODULES + TESTS)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    """
    The first sentence of a file.
    """
    assert ast.get_docstring(tree_of(path))


@with_paths(MODULES)
def test_public_things_are_documented(path: Path) -> None:
    """
    Every public function, method and class has a docstring.
    """
    public = (node for node in definitions(tree_of(path)) if not node.name.startswith("_"))
    bare = [f"{node.name} in line {node.lineno}" for node in public if not ast.get_docstring(node)]

    assert not bare


@with_paths(MODULES + TESTS)
def test_functions_are_short(path: Path) -> None:
    """
    No function is longer than a screen.
    """
    functions = (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {f"{n.name} in line {n.lineno}": (n.end_lineno or 0) - n.lineno + 1 for n in functions}

    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}


@with_paths(TESTS)
def test_tests_use_no_mocks_and_no_skips(path: Path) -> None:
    """
    Fakes, not mocks; and a test that does not run tests nothing.
    """
    names = set(imported(tree_of(path)))
    used = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}

    assert not {name for name in names if "mock" in name.lower()}
    assert not used & {"skip", "skipif", "importorskip", "xfail"}


@with_paths(TESTS)
def test_tests_state_facts(path: Path) -> None:
    """
    The docstring of a test is the fact that it proves; an inherited one has it already.
    """
    functions = (n for n in tree_of(path).body if isinstance(n, ast.FunctionDef))
    bare = [n.name for n in functions if n.name.startswith("test_") and not ast.get_docstring(n)]

    assert not bare


@with_paths(MODULES)
def test_nothing_runs_text(path: Path) -> None:
    """
    No text becomes code or objects, and none is given to a shell.
    """
    tree = tree_of(path)
    shells = [
        keyword.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]

    assert not shells
    assert not {name for name, _ in calls(tree)} & NEVER_CALLED
    assert not {name.partition(".")[0] for name in imported(tree)} & NEVER_IMPORTED
    assert not {"os.system", "os.popen"} & {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


@with_paths([path for path in MODULES if name_of(path) not in MAY_PRINT])
def test_only_the_command_line_prints(path: Path) -> None:
    """
    Everything else has a log.
    """
    assert "print" not in {name for name, _ in calls(tree_of(path))}


@with_paths([path for path in MODULES if name_of(path).startswith("model/")])
def test_model_is_pure(path: Path) -> None:
    """
    Thinking needs no disk, socket, clock, thread or log.
    """
    tree = tree_of(path)

    assert not {name.partition(".")[0] for name in imported(tree)} & MODEL_FORBIDS
    assert not {name for name, _ in calls(tree)} & MODEL_FORBIDS_CALLS


def layer_of(name: str) -> int | None:
    """The layer of `talaria.<name>`; None for what stands beside the layers."""
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


@with_paths(MODULES)
def test_imports_go_down_only(path: Path) -> None:
    """
    A file knows the layers below its own, and its own room.
    """
    room = name_of(path).partition("/")[0].removesuffix(".py")
    own = layer_of(room)
    rooms = {name.split(".")[1] for name in imported(tree_of(path)) if name.startswith("talaria.")}

    wrong = {other for other in rooms - {room} if own is not None and (layer_of(other) or 0) >= own}
    assert not wrong


@with_paths(MODULES + TESTS)
def test_silenced_checks_have_a_reason(path: Path) -> None:
    """
    Where a check is silenced, the reason stands beside it.
    """
    bare = [
        line
        for line, text in comments(path)
        if (found := REASONED.search(text)) and not re.search(r"\w{3}", found["rest"] or "")
    ]

    assert not bare


@with_paths(MODULES)
def test_unfinished_work_has_an_issue(path: Path) -> None:
    """
    What is left to be done is written where it is found again.
    """
    bare = [line for line, text in comments(path) if re.search(r"\b(?:TODO|FIXME|XXX)\b(?!.*#\d+)", text)]

    assert not bare


#: Functions that write without a fail point of their own, and why.
UNARMED = {
    "sync_directory": "each caller has a point after it",
    "_write_synced": "of a spool that is being made: `create` has points after it",
    "remove_folder": "of `folder`, which has a point after it",
    "remove_tree": "of the processor's `_undo`, which has a point after it",
    "drop": "each file is followed by a point of the cleaner",
    "_private": "opens only",
    "_remove": "of a restore: a half-made ledger that nobody uses yet",
}

#: Calls that change what is on disk.
WRITES = {
    "os.rename", "os.replace", "os.link", "os.unlink", "os.remove", "os.fsync", "os.fdatasync", "os.truncate",
    "shutil.rmtree", "shutil.copyfile",
}  # fmt: skip


def _writes(call: ast.Call) -> bool:
    """Whether a call renames, links, removes or syncs."""
    is_unlink = isinstance(call.func, ast.Attribute) and call.func.attr in {"unlink", "rmdir", "symlink_to"}
    return ast.unparse(call.func) in WRITES or is_unlink


def _is_named_transaction(call: ast.Call) -> bool:
    """Whether a transaction has a name in the text, so that its two fail points are found."""
    name = call.args[0] if call.args else None
    return isinstance(name, ast.Constant) and bool(re.fullmatch(r"\w+\.\w+", str(name.value)))


@with_paths([path for path in MODULES if name_of(path).partition("/")[0] in {"store", "services"}])
def test_what_writes_passes_a_fail_point(path: Path) -> None:
    """
    Where state changes outside of the ledger a test can kill; in the ledger each transaction has its two points.
    """
    functions = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef) and n.name not in UNARMED]
    bare = [
        f"{function.name} in line {function.lineno}"
        for function in functions
        if any(_writes(call) for call in ast.walk(function) if isinstance(call, ast.Call))
        and "failpoint" not in {name for name, _ in calls(function)}
    ]
    nameless = [
        call.lineno
        for call in ast.walk(tree_of(path))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "writing"
        if not _is_named_transaction(call)
    ]

    assert not bare
    assert not nameless


@pytest.mark.parametrize(
    ("text", "reasoned"),
    [
        ("# type: ignore", False),
        ("# type: ignore[arg-type]", False),
        ("# noqa: S311", False),
        ("# noqa: S311 - noise, not a secret", True),
        ("# type: ignore[arg-type] # names are checked by replace", True),
    ],
)
def test_reasons_are_recognised(text: str, *, reasoned: bool) -> None:
    """
    The check of silenced checks knows a reason when it sees one.
    """
    found = REASONED.search(text)

    assert found
    assert reasoned == bool(re.search(r"\w{3}", found["rest"] or ""))

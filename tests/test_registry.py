"""Which plugs exist."""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from talaria.model.errors import ConfigError
from talaria.model.extensions import Executor, Module, Target
from talaria.registry import collect, discover

TARGET = """\
from typing import ClassVar
from talaria.model.extensions import Target

class {name}(Target):
    kind: ClassVar[str] = "{kind}"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def point(name: str, value: str) -> EntryPoint:
    """An entry point of an installed package."""
    return EntryPoint(name=name, value=value, group="talaria.targets")


def test_own_shelves() -> None:
    """
    What lies on our own shelves is found, under its kind.
    """
    shelves = discover()

    assert {"dicom", "folder"} <= set(shelves.targets)
    assert {"pass", "set_tags"} <= set(shelves.modules)
    assert {"process"} <= set(shelves.executors)
    assert all(issubclass(plug, Target) and kind == plug.kind for kind, plug in shelves.targets.items())
    assert all(issubclass(plug, Module) and kind == plug.kind for kind, plug in shelves.modules.items())
    assert all(issubclass(plug, Executor) and kind == plug.kind for kind, plug in shelves.executors.items())
    assert {} == shelves.missing


def test_a_file_is_enough(package: Path) -> None:
    """
    A module with a class that has a kind is a plug; the class it builds on, and what it imports, are none.
    """
    (package / "shelf_a.py").write_text(TARGET.format(name="A", kind="a") + "\nclass Base(Target):\n    pass\n")
    (package / "shelf_b.py").write_text("from shelf_a import A\n" + TARGET.format(name="B", kind="b"))
    shelf = collect(Target, modules=["shelf_a", "shelf_b"], points=[])

    assert {"a": "A", "b": "B"} == {kind: plug.__name__ for kind, plug in shelf.plugs.items()}


def test_entry_points(package: Path) -> None:
    """
    An entry point brings a plug by its class or by its module.
    """
    (package / "third_a.py").write_text(TARGET.format(name="A", kind="a"))
    (package / "third_b.py").write_text(TARGET.format(name="B", kind="b"))
    shelf = collect(Target, modules=[], points=[point("a", "third_a:A"), point("b", "third_b")])

    assert {"a", "b"} == set(shelf.plugs)


def test_missing_library(package: Path) -> None:
    """
    A plug whose library is absent is listed with what it needs, and the others are there.
    """
    (package / "s3.py").write_text("import obstore.no_such_thing\n" + TARGET.format(name="S3", kind="s3"))
    (package / "odd.py").write_text("import a_library_that_is_not_there\n")
    (package / "fine.py").write_text(TARGET.format(name="Fine", kind="fine"))
    shelf = collect(Target, modules=["s3", "odd", "fine"], points=[point("far", "a_package_that_is_not_there:X")])

    assert {
        "s3": "needs talaria-dicom[s3], which is not installed",
        "odd": "needs a_library_that_is_not_there, not installed",
        "far": "needs a_package_that_is_not_there, not installed",
    } == dict(shelf.missing)
    assert ["fine"] == list(shelf.plugs)


def test_our_own_fault_is_no_missing_library(package: Path) -> None:
    """
    A module that imports what we do not have ourselves is a bug, and is not hidden.
    """
    (package / "broken.py").write_text("import talaria.model.no_such_page\n")
    (package / "worse.py").write_text("from talaria.model import no_such_page\n")

    for name in ("broken", "worse"):
        with pytest.raises(ImportError):
            collect(Target, modules=[name], points=[])


def test_one_kind_twice(package: Path) -> None:
    """
    Two plugs of one kind are refused, with the names of both.
    """
    (package / "one.py").write_text(TARGET.format(name="One", kind="same"))
    (package / "two.py").write_text(TARGET.format(name="Two", kind="same"))

    with pytest.raises(ConfigError) as raised:
        collect(Target, modules=["one"], points=[point("same", "two:Two")])

    assert "kind 'same' is there twice: one.One and two.Two; remove one of them" == str(raised.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("empty", "entry point 'x' (empty) holds no Target with a kind; mend or remove its package"),
        ("empty:number", "entry point 'x' (empty:number) holds no Target with a kind; mend or remove its package"),
        (
            "empty:Gone",
            "entry point 'x' (empty:Gone) is broken: AttributeError: module 'empty' has no attribute 'Gone'; "
            "mend or remove its package",
        ),
        (
            "raises",
            "entry point 'x' (raises) is broken: ZeroDivisionError: division by zero; mend or remove its package",
        ),
        (
            "half",
            "entry point 'x' (half) is broken: ImportError: cannot import name 'nothing' from 'json' "
            f"({json.__file__}); mend or remove its package",
        ),
        (
            "unreadable",
            "entry point 'x' (unreadable) is broken: SyntaxError: invalid syntax (unreadable.py, line 1); "
            "mend or remove its package",
        ),
        ("gone", "needs gone, not installed"),
    ],
)
def test_broken_entry_point_is_listed(package: Path, value: str, message: str) -> None:
    """
    An entry point of another package that is broken or holds no plug is listed with what is wrong; the others are
    there.
    """
    (package / "empty.py").write_text("number = 5\n")
    (package / "raises.py").write_text("1 / 0\n")
    (package / "half.py").write_text("from json import nothing\n")
    (package / "unreadable.py").write_text("x = = 1\n")
    (package / "good.py").write_text(TARGET.format(name="Good", kind="good"))
    shelf = collect(Target, modules=[], points=[point("x", value), point("good", "good")])

    assert {"x": message} == dict(shelf.missing)
    assert ["good"] == list(shelf.plugs)

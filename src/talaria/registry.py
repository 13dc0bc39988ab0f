"""Which plugs exist: those of every module on our shelves, and those of installed packages."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from types import MappingProxyType, ModuleType
from typing import Generic, TypeVar

from talaria.model.errors import ConfigError, TalariaError
from talaria.model.extensions import Executor, Module, Plug, Target
from talaria.model.rulebook import Shelves

DISTRIBUTION = "talaria-dicom"

P = TypeVar("P", bound=Plug)

#: What code of others raises while it is imported; what is none of these stops us, as a bug should.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, NameError,
    OSError, RuntimeError, SyntaxError, TalariaError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shelf(Generic[P]):
    """What is on one shelf."""

    plugs: Mapping[str, type[P]]
    """By kind."""
    missing: Mapping[str, str]
    """Name of a module of ours, or of an entry point -> what it needs, or what is wrong with it."""


def discover() -> Shelves:
    """
    Every plug there is: `talaria/targets`, `talaria/modules` and `talaria/executors`, one file each, then the entry
    points of the groups `talaria.targets`, `talaria.modules` and `talaria.executors`.

    A module whose optional library is absent is listed as missing, and nothing else depends on it; so is an entry point
    of another package that is broken or leads to no plug.

    Raises:
        ConfigError: Two plugs have one kind.
    """
    targets, modules, executors = shelf("targets", Target), shelf("modules", Module), shelf("executors", Executor)
    missing = {
        (name, kind): need
        for name, found in (("targets", targets), ("modules", modules), ("executors", executors))
        for kind, need in found.missing.items()
    }
    return Shelves(
        targets=targets.plugs, modules=modules.plugs, executors=executors.plugs, missing=MappingProxyType(missing)
    )


def shelf(name: str, base: type[P]) -> Shelf[P]:
    """One shelf: a package of ours and the entry points of its group."""
    package = importlib.import_module(f"talaria.{name}")
    return collect(base, modules=modules_of(package), points=entry_points(group=f"talaria.{name}"))


def modules_of(package: ModuleType) -> Iterator[str]:
    """The full names of a package's modules, in alphabetical order."""
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        yield f"{package.__name__}.{module.name}"


def collect(base: type[P], *, modules: Iterable[str], points: Iterable[EntryPoint]) -> Shelf[P]:
    """
    The plugs of some modules and entry points; an entry point names a plug's class, or the module that holds it.

    Raises:
        ConfigError: Two plugs have one kind.
    """
    plugs: dict[str, type[P]] = {}
    missing: dict[str, str] = {}
    for name in modules:
        for plug in _loaded(name.rpartition(".")[2], partial(importlib.import_module, name), base, missing):
            _put(plug, plugs)
    for point in points:
        for plug in _plugs_at(point, base, missing):
            _put(plug, plugs)
    return Shelf(plugs=MappingProxyType(plugs), missing=MappingProxyType(missing))


def _loaded(name: str, load: Callable[[], object], base: type[P], missing: dict[str, str]) -> list[type[P]]:
    """The plugs of what *load* gives; notes what is missing where a library is."""
    try:
        return list(_plugs_in(load(), base))
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] == "talaria":
            raise  # a fault of ours, and not a library that somebody left out
        missing[name] = _need(error.name, name)
        return []


def _plugs_at(point: EntryPoint, base: type[P], missing: dict[str, str]) -> list[type[P]]:
    """The plugs of another package; where it is broken that is noted, and we start without it."""
    who = f"entry point {point.name!r} ({point.value})"
    try:
        plugs = list(_plugs_in(point.load(), base))
    except _BROKEN as error:
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "talaria":
            missing[point.name] = _need(error.name, point.name)
            return []
        words = " ".join(str(error).split())[:300]
        missing[point.name] = f"{who} is broken: {type(error).__name__}: {words}; mend or remove its package"
        return []
    if not plugs:
        missing[point.name] = f"{who} holds no {base.__name__} with a kind; mend or remove its package"
    return plugs


def _plugs_in(found: object, base: type[P]) -> Iterator[type[P]]:
    """A class itself, or the classes that a module defines; those without a kind are for others to build on."""
    candidates = vars(found).values() if isinstance(found, ModuleType) else [found]
    for candidate in candidates:
        if not isinstance(candidate, type) or not issubclass(candidate, base) or not hasattr(candidate, "kind"):
            continue
        if candidate is found or candidate.__module__ == getattr(found, "__name__", None):
            yield candidate


def _put(plug: type[P], plugs: dict[str, type[P]]) -> None:
    other = plugs.setdefault(plug.kind, plug)
    if other is not plug:
        raise ConfigError(
            f"kind {plug.kind!r} is there twice: {_full_name(other)} and {_full_name(plug)}; remove one of them"
        )


def _full_name(plug: type[Plug]) -> str:
    return f"{plug.__module__}.{plug.__qualname__}"


def _need(library: str, name: str) -> str:
    """What to install for a library that is absent."""
    top = library.partition(".")[0]
    extra = _extras().get(top.lower().replace("_", "-"))
    return f"needs {DISTRIBUTION}[{extra or name}], which is not installed" if extra else f"needs {top}, not installed"


def _extras() -> Mapping[str, str]:
    """Library -> the extra of ours that brings it."""
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}  # run from a folder that was never installed
    matches = (re.match(r"([\w.-]+).*;.*extra\s*==\s*['\"]([\w-]+)", line) for line in requirements)
    return {match[1].lower().replace("_", "-"): match[2] for match in matches if match}

"""The child process that runs one built-in module: `python -m talaria.modules NAME`."""

import ctypes
import errno
import importlib.util
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from talaria.model.errors import ConfigError, TalariaError
from talaria.model.extensions import Module

_TASK_LIMIT_BYTES = 16 << 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}", re.ASCII)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """
    Run a module on its folders; 0, or 1 with the reason as the last line on stderr, 75 where only room is missing.

    Args:
        arguments: The module's name.
        environment: `TALARIA_IN_DIR`, `TALARIA_OUT_DIR`, `TALARIA_TASK`; mercure's names for the first two will do.
    """
    try:
        _run(arguments, environment)
    except MemoryError:
        return _failed("out of memory")
    except OSError as error:
        words = os.strerror(error.errno or 0).lower()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return _failed(f"no room for a file: {words}", code=os.EX_TEMPFAIL)
        return _failed(
            "out of memory" if error.errno == errno.ENOMEM else f"a file could not be read or written: {words}"
        )
    except TalariaError as error:
        return _failed(str(error))
    return 0


def _failed(reason: str, *, code: int = 1) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"{reason}\n")
    return code


def _run(arguments: list[str], environment: Mapping[str, str]) -> None:
    if len(arguments) != 1:
        raise ConfigError("usage: python -m talaria.modules NAME")
    plug = find(arguments[0])
    source = _folder(environment, "IN_DIR")
    destination = _folder(environment, "OUT_DIR")
    task = read_task(Path(environment.get("TALARIA_TASK") or source / "task.json"))
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    _configured(plug, settings_of(task)).run(source, destination, task)


def find(name: str) -> type[Module]:
    """
    The built-in module of that name.

    Raises:
        ConfigError: There is none.
    """
    for candidate in (name, f"{name}_"):  # a module named like a Python keyword has a `_` after it
        full = f"talaria.modules.{candidate}"
        if _NAME.fullmatch(name) and importlib.util.find_spec(full) is not None:
            for plug in vars(importlib.import_module(full)).values():
                if isinstance(plug, type) and issubclass(plug, Module) and plug.__dict__.get("kind") == name:
                    return plug
    raise ConfigError(f"there is no built-in module {name[:40]!r}")


def _folder(environment: Mapping[str, str], name: str) -> Path:
    text = environment.get(f"TALARIA_{name}") or environment.get(f"MERCURE_{name}")
    if not text or not Path(text).is_dir():
        raise ConfigError(f"TALARIA_{name} names no folder")
    return Path(text)


def read_task(path: Path) -> Mapping[str, Any]:
    """
    The task of this step, as mercure writes it; empty where there is no file.

    Raises:
        ConfigError: It is no JSON object, or larger than 16 MiB.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_TASK_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return {}
    try:
        task = json.loads(text) if len(text) <= _TASK_LIMIT_BYTES else None
    except (ValueError, RecursionError):
        task = None
    if not isinstance(task, dict):
        raise ConfigError("task.json is no JSON object of at most 16 MiB")
    return task


def settings_of(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    `process.settings` of a task; of the first step where there are several.

    Raises:
        ConfigError: It is not an object.
    """
    process = task.get("process") or {}
    if isinstance(process, list):
        process = process[0] if process else {}
    settings = process.get("settings") if isinstance(process, dict) else process
    if not isinstance(settings or {}, dict):
        raise ConfigError("process.settings in task.json is no object")
    return settings or {}


def _configured(plug: type[Module], settings: Mapping[str, Any]) -> Module:
    try:
        return plug.model_validate(dict(settings))
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        places = (f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in found)
        raise ConfigError(f"{plug.kind}: settings: {'; '.join(places)}") from None


def die_with_parent(environment: Mapping[str, str]) -> None:
    """Be killed when the thread that started this process ends; end now where it is gone already (prctl(2))."""
    parent = environment.get("TALARIA_PARENT")
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)


if __name__ == "__main__":
    die_with_parent(os.environ)
    sys.exit(main(sys.argv[1:], os.environ))

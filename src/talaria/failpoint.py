"""Named places where a fault test makes the program die, wait or fail; in life they do nothing."""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

#: Without it, `TALARIA_FAILPOINTS` is not looked at.
_TEST_BUILD = "TALARIA_TEST_BUILD"
_FAILPOINTS = "TALARIA_FAILPOINTS"


class InjectedFault(RuntimeError):
    """What the action `raise` raises: a bug, to whoever meets it."""


class Faults:
    """
    Which places are armed, and how often they were passed.

    Written `NAME=ACTION[@N]`, several with commas between: the action happens when the place is passed for the n-th
    time, the first without a number. Actions: `kill` (SIGKILL to this process), `exit`, `stop` (SIGSTOP),
    `sleep:SECONDS`, `raise`, and any name of an error number, as `enospc`. A path (beginning with `/`) names a file
    that holds such a text; it is read again whenever it changes, and renamed to `PATH.fired` by the first process in
    which one of its places acts, so that what is started again afterwards lives.
    """

    def __init__(self, text: str) -> None:
        self._file = Path(text) if text.startswith("/") else None
        self._armed = {} if self._file else _parse(text)
        self._stamp: int | None = None
        self._passed: Counter[str] = Counter()

    def passed(self, name: str) -> None:
        """Count, and act where it is time."""
        if self._file is not None:
            self._look(self._file)
        action, number = self._armed.get(name, ("", 0))
        if not action:
            return
        self._passed[name] += 1
        if self._passed[name] == number and self._is_first():
            _act(action, name)

    def _look(self, file: Path) -> None:
        try:
            stamp = file.stat().st_mtime_ns
        except FileNotFoundError:
            self._armed, self._stamp = {}, None
            return
        if stamp != self._stamp:
            self._armed, self._stamp = _parse(file.read_text()), stamp
            self._passed.clear()

    def _is_first(self) -> bool:
        """Whether no other process has acted on this file."""
        if self._file is None:
            return True
        try:
            os.rename(self._file, f"{self._file}.fired")
        except FileNotFoundError:
            return False
        return True


def _parse(text: str) -> dict[str, tuple[str, int]]:
    armed = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = entry.partition("=")
        action, _, number = rest.partition("@")
        armed[name] = (action, int(number or 1))
    return armed


def _act(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(70)
    elif action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
    elif action == "raise":
        raise InjectedFault(name)
    else:
        number = int(getattr(errno, action.upper()))
        raise OSError(number, os.strerror(number))


class _Place:
    """Holds what is armed in this process; nothing, outside of a test build."""

    faults: Faults | None = None


def arm(text: str) -> None:
    """Arm places in this process and its children, as `Faults` reads them; with an empty text none."""
    _Place.faults = Faults(text) if text else None


def arm_from(environment: Mapping[str, str]) -> None:
    """Arm what the environment of a test build says."""
    if environment.get(_TEST_BUILD) == "1":
        arm(environment.get(_FAILPOINTS, ""))


def failpoint(name: str) -> None:
    """A place with a name, `ROOM.WHAT.MOMENT`; does nothing unless a test has armed it."""
    if _Place.faults is not None:
        _Place.faults.passed(name)


arm_from(os.environ)

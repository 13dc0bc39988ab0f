"""Named places where a fault test makes the program die, wait or fail; in life they do nothing."""

import errno
import os
import signal
import threading
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
    Which places are armed, and how often they were passed; used by any number of threads.

    Written `NAME=ACTION[@N]`, several with commas between: the action happens when the place is passed for the n-th
    time, the first without a number. `SERVICE:NAME` means the place in the processes of one service only. Actions:
    `kill` (SIGKILL to this process), `exit`, `stop` (SIGSTOP), `sleep:SECONDS`, `raise`, and any name of an error
    number, as `enospc`. A path (beginning with `/`) names a file that holds such a text; it is read again whenever it
    changes. Each of its entries acts once, in the first process in which it is time, which makes the file
    `PATH.NAME.fired` before it acts: what is started again afterwards lives.

    Raises:
        ValueError: An action or a number is not understood: a test that arms nothing proves nothing.
    """

    def __init__(self, text: str) -> None:
        self._file = Path(text) if text.startswith("/") else None
        self._armed = {} if self._file else _parse(text)
        self._stamp: tuple[int, int] | None = None
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def passed(self, name: str, *, service: str = "") -> None:
        """Count, and act where it is time."""
        with self._lock:
            if self._file is not None:
                self._look(self._file)
            own = f"{service}:{name}"
            found = own if own in self._armed else name
            action, number = self._armed.get(found, ("", 0))
            if not action:
                return
            self._passed[found] += 1
            is_time = self._passed[found] == number and self._is_first(found)
        if is_time:  # outside of the lock: who sleeps here must not hold up the others
            _act(action, name)

    def _look(self, file: Path) -> None:
        try:
            found = file.stat()
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp == self._stamp:
                return
            self._armed, self._stamp = _parse(file.read_text()), stamp
        except FileNotFoundError:
            self._armed, self._stamp = {}, None
        self._passed.clear()

    def _is_first(self, entry: str) -> bool:
        """Whether no other process has acted on this entry of the file."""
        if self._file is None:
            return True
        try:
            os.close(os.open(f"{self._file}.{entry}.fired", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True


def _parse(text: str) -> dict[str, tuple[str, int]]:
    armed = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = entry.partition("=")
        action, _, number = rest.partition("@")
        if action not in {"kill", "stop", "exit", "raise"} and not action.startswith("sleep:"):
            _error_number(action)
        armed[name] = (action, int(number or 1))
    return armed


def _error_number(name: str) -> int:
    number = getattr(errno, name.upper(), None)
    if not isinstance(number, int):
        raise ValueError(f"fail point action {name!r}: neither kill, exit, stop, raise, sleep:SECONDS nor an error")
    return number


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
        number = _error_number(action)
        raise OSError(number, os.strerror(number))


class _Place:
    """Holds what is armed in this process, nothing outside of a test build; and which service it is."""

    faults: Faults | None = None
    service: str = ""


def arm(text: str) -> None:
    """Arm places in this process and its children, as `Faults` reads them; with an empty text none."""
    _Place.faults = Faults(text) if text else None


def arm_from(environment: Mapping[str, str]) -> None:
    """Arm what the environment of a test build says."""
    if environment.get(_TEST_BUILD) == "1":
        arm(environment.get(_FAILPOINTS, ""))


def stand_for(service: str) -> None:
    """Say which service this process is, for places that are armed in one service only."""
    _Place.service = service


def failpoint(name: str) -> None:
    """A place with a name, `ROOM.WHAT.MOMENT`; does nothing unless a test has armed it."""
    if _Place.faults is not None:
        _Place.faults.passed(name, service=_Place.service)


arm_from(os.environ)

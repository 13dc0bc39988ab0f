"""Built-in modules, each run in a child process that has limits and leaves nothing behind."""

import errno
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PrivateAttr

from talaria.failpoint import failpoint
from talaria.model.errors import NoRoom, Permanent, Transient
from talaria.model.extensions import Executor, Exit, Limits, Run, Stop, Stopped
from talaria.model.quantity import Span

_TICK_SECONDS = 0.25  # how often time, stop and output are looked at
_KILL_SECONDS = 10.0  # how long a killed process may take to vanish
_READ_BYTES = 1 << 16
_OPEN_FILES = 1024
_OOM_SCORE = 500  # where the machine runs out of memory, a module goes before the receiver does
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
_UNREADABLE = frozenset((errno.ENAMETOOLONG, errno.EACCES))  # folders nested too deep or shut by the module
_OUT_OF_MEMORY = re.compile(r"out of memory|MemoryError\b.*")


class Process(Executor):
    """
    Runs built-in modules in child processes of this machine.

    A child has a session of its own, a small environment, no input and the limits of the run. It is killed when the
    thread that submitted it ends, so a run is never found again after a restart. It runs as the orchestrator's own
    user: this keeps a module from using too much, not one that means harm; that takes a container.
    """

    kind: ClassVar[str] = "process"

    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """How far a module stands back behind the services: 0 not at all, 19 most."""
    grace: Span = timedelta(seconds=10)
    """Between asking a run to end (SIGTERM) and killing it."""

    _children: dict[str, "_Child"] = PrivateAttr(default_factory=dict)

    def argv(self, run: Run) -> list[str]:
        """The command of a run: program and arguments."""
        # -I: nothing of the folder it stands in, or of the user's, can come before our own code.
        return [sys.executable, "-I", "-u", "-m", "talaria.modules", run.builtin or ""]

    def submit(self, run: Run) -> str:
        """
        Start the child. Call `follow` soon, from the same thread: nobody else reads what it prints.

        Raises:
            NoRoom: No room for its folders.
            Transient: The machine has no process, memory or descriptor to spare.
            Permanent: The module is not a built-in one.
        """
        if run.builtin is None:
            raise Permanent(
                f"module '{run.module}': executor 'process' runs built-in modules only; name another executor"
            )
        token = secrets.token_hex(16)
        try:
            _make_folders(run)
            child = _start(self.argv(run), run, token=token)
            failpoint("process.run.started")
        except OSError as error:
            kind = NoRoom if error.errno in _NO_ROOM else Transient
            words = os.strerror(error.errno or 0).lower()
            raise kind(f"module '{run.module}': could not be started: {words}") from error
        try:
            _restrain(child.popen.pid, run.limits, nice=self.nice)
        except OSError as error:
            child.end(0.0)
            raise Transient(f"module '{run.module}': its limits could not be set: {error.strerror}") from error
        handle = f"{child.popen.pid}:{_start_time(child.popen.pid)}:{token}"
        self._children[handle] = child
        return handle

    def follow(self, handle: str, run: Run, *, stop: Stop) -> Exit | None:
        """
        Wait for the child to end; no process of the run is left when this returns or raises.

        Returns:
            How it ended; None for a run that another process, or another executor, started: what is left of it is
            killed.

        Raises:
            Stopped: *stop* said so; the run was killed.
            Transient: A killed process does not go away, as when it waits for a disk that is gone.
        """
        child = self._children.pop(handle, None)
        if child is None:
            _kill_stranger(handle)
            return None
        try:
            reason = _watch(child, run, stop)
        finally:
            child.end(self.grace.total_seconds())
        reason = reason or _excess(run)
        shutil.rmtree(run.folder / "tmp", ignore_errors=True)
        return _exit(child, reason, run.limits)


class _Tail:
    """The end of a log."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._total = 0

    def append(self, chunk: bytes) -> None:
        self._total += len(chunk)
        self._kept += chunk
        if len(self._kept) > 2 * self._limit + _READ_BYTES:
            del self._kept[: -self._limit or None]

    def text(self) -> str:
        """As UTF-8 with what would move a terminal escaped, and a first line that tells how much was cut."""
        kept = bytes(self._kept[-self._limit :]) if self._limit else b""
        cut = self._total - len(kept)
        return (f"[{cut} bytes before this were cut]\n" if cut else "") + _printable(kept.decode("utf-8", "replace"))


@dataclass(kw_only=True)
class _Child:
    """A run under way."""

    popen: subprocess.Popen[bytes]
    token: str
    log: _Tail
    started: float = field(default_factory=time.monotonic)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def __post_init__(self) -> None:
        assert self.popen.stdout is not None
        self.pipe = self.popen.stdout
        os.set_blocking(self.pipe.fileno(), False)
        self.pidfd = os.pidfd_open(self.popen.pid)
        self.selector.register(self.pipe, selectors.EVENT_READ)
        self.selector.register(self.pidfd, selectors.EVENT_READ)

    @property
    def ended(self) -> bool:
        """Whether the child has ended; it is not reaped, so that its number keeps standing for its group."""
        return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def drain(self, seconds: float) -> None:
        """Take what it printed; waits at most so long for something to print or for its end."""
        ready = [key.fileobj for key, _ in self.selector.select(seconds)]
        if self.pipe in ready:
            self._read()

    def _read(self) -> bool:
        """Take one chunk; whether there was one."""
        chunk = self.pipe.read(_READ_BYTES)
        if chunk == b"":
            self.selector.unregister(self.pipe)  # nobody holds the other end any more
        self.log.append(chunk or b"")
        return bool(chunk)

    def end(self, grace: float) -> None:
        """
        End it, its group, and whatever left the group; keep the end of the log.

        Raises:
            Transient: It does not go away.
        """
        try:
            self._wait_after(signal.SIGTERM, grace)
            self._wait_after(signal.SIGKILL, _KILL_SECONDS)
            _signal_group(self.popen.pid, signal.SIGKILL)  # what the child left in its group
            _kill_strays(self.token)
            self._drain_rest()
            if not self.ended:
                raise Transient(f"process {self.popen.pid} does not end after SIGKILL; look for a disk that hangs")
            self.popen.wait()
        finally:
            self.selector.close()
            os.close(self.pidfd)
            self.pipe.close()

    def _wait_after(self, number: signal.Signals, seconds: float) -> None:
        if self.ended:
            return
        _signal_group(self.popen.pid, number)
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline:
            self.drain(_TICK_SECONDS)

    def _drain_rest(self) -> None:
        """What stands in the pipe, which is bounded: everybody who could write more is gone."""
        while self.pipe in (key.fileobj for key in self.selector.get_map().values()) and self._read():
            pass


def _make_folders(run: Run) -> None:
    for folder in (run.output, run.folder / "tmp"):
        folder.mkdir(exist_ok=True)


def _start(argv: list[str], run: Run, *, token: str) -> _Child:
    popen = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        cwd=run.folder,
        env=_environment(run, token),
        umask=0o027,
        start_new_session=True,
    )
    try:
        return _Child(popen=popen, token=token, log=_Tail(run.limits.log_bytes))
    except OSError:  # no descriptor left to watch it by
        popen.kill()
        popen.communicate()
        raise


def _environment(run: Run, token: str) -> dict[str, str]:
    source, destination, scratch = str(run.input), str(run.output), str(run.folder / "tmp")
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        **run.environment,
        "HOME": scratch,
        "TMPDIR": scratch,
        "TALARIA_IN_DIR": source,
        "TALARIA_OUT_DIR": destination,
        "TALARIA_TASK": str(run.input / "task.json"),
        "MERCURE_IN_DIR": source,
        "MERCURE_OUT_DIR": destination,
        "TALARIA_PARENT": str(os.getpid()),
        "TALARIA_RUN": token,
    }


def _restrain(pid: int, limits: Limits, *, nice: int) -> None:
    """
    Set the limits of a process that has just begun.

    From here and not in the child between fork and exec, where a thread's lock can hang it; the interpreter has not
    come to a module's code by then.
    """
    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.output_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    with suppress(ProcessLookupError):  # ended already
        for kind, value in wanted.items():
            hard = resource.prlimit(pid, kind)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, kind, (least, least))
        os.setpriority(os.PRIO_PROCESS, pid, max(nice, os.getpriority(os.PRIO_PROCESS, pid)))
        with suppress(OSError):  # a kindness, not a limit
            Path(f"/proc/{pid}/oom_score_adj").write_text(f"{_OOM_SCORE}\n", encoding="ascii")


def _watch(child: _Child, run: Run, stop: Stop) -> str:
    """
    Follow a run to its end or to a limit.

    Returns:
        Why it must be killed; empty when it ended by itself.
    """
    deadline = child.started + run.limits.timeout.total_seconds()
    next_tick = next_look = child.started + _TICK_SECONDS
    while not child.ended:
        child.drain(_TICK_SECONDS)
        now = time.monotonic()
        if now < next_tick:
            continue
        next_tick = now + _TICK_SECONDS
        if stop():
            raise Stopped(f"module '{run.module}' was stopped")
        if now >= deadline:
            return f"killed: took longer than {_duration(run.limits.timeout)}"
        if now >= next_look:
            reason = _excess(run)
            if reason:
                return reason
            cost = time.monotonic() - now
            next_look = now + max(_TICK_SECONDS, 20 * cost)
    return ""


def _excess(run: Run) -> str:
    """Which limit on what it may write is passed, in words; empty if none."""
    limits = run.limits
    files = size = 0
    try:
        for entry in _entries([run.output, run.folder / "tmp"]):
            files += 1
            size += entry
            if files > limits.output_files:
                return f"killed: wrote more than {limits.output_files} files"
            if size > limits.output_bytes:
                return f"killed: wrote more than {_size(limits.output_bytes)}"
    except OSError as error:
        if error.errno in _UNREADABLE:
            return f"killed: its output cannot be read: {os.strerror(error.errno or 0).lower()}"
        raise Transient(f"module '{run.module}': its output cannot be read: {error.strerror}") from error
    return ""


def _entries(folders: list[Path]) -> Iterator[int]:
    """The size of everything below, folders counted as empty files; links are not followed."""
    waiting = [str(folder) for folder in folders]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    yield 0
                else:
                    yield _size_of(entry)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _exit(child: _Child, reason: str, limits: Limits) -> Exit:
    status = child.popen.returncode
    log = child.log.text()
    code = status if status >= 0 else 128 - status
    return Exit(code=code, reason=reason or _reason(status, log, limits), log=log)


def _reason(status: int, log: str, limits: Limits) -> str:
    """Why a run that nobody ended did not do what was asked."""
    if status == 0:
        return ""
    if status == -signal.SIGKILL:
        return f"killed by SIGKILL, by the system if memory ran out (its limit is {_size(limits.memory_bytes)})"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    if _OUT_OF_MEMORY.fullmatch(last):
        return f"killed: out of memory at {_size(limits.memory_bytes)}"
    return f"exit code {status}: {last[:300]}"


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _kill_strays(token: str) -> None:
    """Kill processes of a run that left its group; they are known by the token in their environment."""
    for _ in range(100):
        strays = [pid for pid in _pids() if _has_token(pid, token)]
        if not strays:
            return
        for pid in strays:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _has_token(pid: int, token: str) -> bool:
    try:
        return f"TALARIA_RUN={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, a zombie, or not ours
        return False


def _kill_stranger(handle: str) -> None:
    """Kill what is left of a run that this executor did not start; a number that was given away again is spared."""
    pid, _, rest = handle.partition(":")
    start, _, token = rest.partition(":")
    if not (pid.isdigit() and start.isdigit() and token):
        return
    if _start_time(int(pid)) == int(start):  # its environment cannot be read yet in the first moment of its life
        _signal_group(int(pid), signal.SIGKILL)
    _kill_strays(token)


def _start_time(pid: int) -> int:
    """When a process began, in ticks since boot; 0 if there is none (proc(5), stat, field 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[19])


def _printable(text: str) -> str:
    """Control characters other than line feed and tab escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text.replace("\r\n", "\n"))


def _duration(length: timedelta) -> str:
    """As a rulebook has it: the largest unit that divides it."""
    seconds = length.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _size(count: int) -> str:
    """As a rulebook has it, in powers of 1024."""
    for unit, size in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count} bytes"

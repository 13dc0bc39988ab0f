"""The log: structured events, set up once per process; patient data and secrets never get in, and it stops nothing."""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from talaria.services.loop import guarded, told

#: Keys that would name a patient; an event that has one loses its value.
_NEVER = frozenset(
    {"patient_name", "patient_id", "patient_birth_date", "accession_number", "password", "token", "secret", "tags"}
)


def _without_patient(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _NEVER & event.keys():
        event[key] = "(not logged)"
    return event


def _without_texts(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as its types and places alone: its text may name a patient, and so may a line of the source."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    bug = given[1] if isinstance(given, tuple) else given
    if isinstance(bug, BaseException):
        event.setdefault("bug", bug)
    event.update({key: told(value) for key, value in event.items() if isinstance(value, BaseException)})
    return event


#: So many lines may wait for whoever reads; of errors more, since nobody who is told of one is told twice.
_MOST_LINES, _MOST_ERRORS = 2_000, 10_000
#: An error is written before whoever logs it goes on, where the log takes lines: the next thing may be our death.
_ERROR_SECONDS = 0.2
#: At the end, whoever reads has so long to take what waits.
_FAREWELL_SECONDS = 2.0


class _Lines:
    """
    Takes a line an event, from any thread, and writes it on a thread of its own, so that nobody waits for a reader.

    A line that cannot be written (the disk is full, who read the pipe is gone), or for which there is no place because
    too many wait, is lost and counted; nobody who logs hears of it, since no work must end because it cannot be told
    of. As soon as none waits any more, a line says how many were lost.

    It writes past the buffer of its stream: whoever forks while that one's lock is taken would never get it back.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lost = 0
        self._is_torn = False  # the last line has no end
        self._be_born()
        os.register_at_fork(after_in_child=self._be_born)

    def _be_born(self) -> None:
        """Also in a child, which has no thread yet; what waits is its parent's to write."""
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._is_writing = False
        self._writer: threading.Thread | None = None

    # -- those who log --

    def say(self, line: str) -> None:
        """Let a line be written."""
        self._take(line, most=_MOST_LINES)

    debug = info = warning = say

    def error(self, line: str) -> None:
        """Let a line be written that must not be missed."""
        if self._take(line, most=_MOST_ERRORS):
            self.flush(_ERROR_SECONDS)

    critical = error

    def flush(self, seconds: float) -> None:
        """Wait until all is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._is_writing), timeout=seconds)

    def lose(self) -> None:
        """Count a line that cannot be formed."""
        with self._changed:
            self._lost += 1

    def _take(self, line: str, *, most: int) -> bool:
        """Whether it is the only one that waits: else the log may be blocked, and nobody is to wait for it."""
        with self._changed:
            if self._stream is None or len(self._waiting) >= most or not self._has_writer():
                self._lost += 1
                return False
            is_first = not (self._waiting or self._is_writing)
            self._waiting.append(line)
            self._changed.notify_all()
            return is_first

    def _has_writer(self) -> bool:
        if self._writer is None:
            writer = threading.Thread(target=self._write, name="log", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                return False
            self._writer = writer
        return True

    # -- the writer --

    def _write(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                line, self._is_writing = self._waiting.popleft(), True
            if self._put(line):
                self._tell_lost()
            else:
                self.lose()

    def _tell_lost(self) -> None:
        with self._changed:
            if not self._lost or self._waiting:
                return
            lost, self._lost = self._lost, 0
        structlog.get_logger().warning("log lines were lost", lost_lines=lost)

    def _put(self, line: str) -> bool:
        """Write a line, however long that takes; whether it was written."""
        data = f"{chr(10) * self._is_torn}{line}\n".encode("utf-8", "backslashreplace")
        try:
            assert self._stream is not None
            while data:
                written = os.write(self._stream.fileno(), data)
                self._is_torn, data = written < len(data), data[written:]
        except (OSError, ValueError):  # ValueError: the stream was closed
            return False
        return True


class _Named:
    """Says of each event which service it is of, whichever thread tells of it, unless it says so itself."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", self._service)
        return event


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Forms a library's record: its first line, since some write a value or an exception into those below."""

    def format(self, record: logging.LogRecord) -> str:
        short = logging.makeLogRecord(record.__dict__)
        if isinstance(record.args, tuple):
            short.args = tuple(told(value) if isinstance(value, BaseException) else value for value in record.args)
        short.msg, short.args = short.getMessage().partition("\n")[0], None
        return super().format(short)


class _Handler(logging.Handler):
    """Takes what libraries log."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        say = self._lines.error if record.levelno >= logging.ERROR else self._lines.say
        if guarded(lambda: say(self.format(record))) is not None:  # its arguments do not fit its text
            self._lines.lose()

    def flush(self) -> None:
        """Let what waits be written; `logging.shutdown` asks for it at the end of the process."""
        self._lines.flush(_FAREWELL_SECONDS)


def _tell_end(ended: threading.ExceptHookArgs) -> None:
    name, bug = ended.thread.name if ended.thread else "", ended.exc_value
    structlog.get_logger().critical("a thread ended", thread=name, bug=bug or ended.exc_type.__name__)


def set_up(*, level: str, form: Literal["console", "json"], service: str) -> None:
    """
    Log to standard error, a line an event; libraries that use `logging` come out the same way, from warning on.

    Logging never raises, and never waits for whoever reads: a line that cannot be written is lost, and later one says
    how many were (`lost_lines`). What waits at the end of the process is written by `logging.shutdown`, which Python
    calls unless it ends by `os._exit`. Of an exception only types and places are logged.
    """
    lines = _Lines(sys.stderr)  # None in a process without one
    shared: list[Any] = [
        _Named(service),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_patient,
        _without_texts,
    ]
    structlog.configure(
        processors=[*shared, _renderer(form)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,  # a child that was forked has lines of its own
    )
    handler = _Handler(lines)
    last = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(form)]
    handler.setFormatter(_Formatter(foreign_pre_chain=shared, processors=last))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    threading.excepthook = _tell_end


def _renderer(form: Literal["console", "json"]) -> Any:
    if form == "json":
        return structlog.processors.JSONRenderer()
    is_terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    return structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=structlog.dev.plain_traceback)

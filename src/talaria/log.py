"""The log: structured events, set up once per process; patient data and secrets never get in, and it stops nothing."""

import logging
import sys
import threading
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


class _Lines:
    """
    Takes a line an event, from any thread.

    A line that cannot be written (the disk is full, who read the pipe is gone) is lost and counted; nobody who logs
    hears of it, since no work must end because it cannot be told of.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.lost = 0

    def write(self, text: str) -> None:
        """Write a whole line, or count it as lost."""
        with self._lock:
            try:
                if self._stream is not None:
                    self._stream.write(text)
                    self._stream.flush()
            except (OSError, ValueError):  # ValueError: the stream was closed
                self.lost += 1
            else:
                self.lost = 0

    def flush(self) -> None:
        """Nothing waits."""

    def say(self, line: str) -> None:
        """Write a line that has no end yet."""
        self.write(line + "\n")

    debug = info = warning = error = critical = say

    def tell_lost(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Say in an event how many were lost before it."""
        if self.lost:
            event["lost_lines"] = self.lost
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
        if guarded(lambda: self._lines.say(self.format(record))) is not None:  # its arguments do not fit its text
            self._lines.lost += 1


def _tell_end(ended: threading.ExceptHookArgs) -> None:
    name, bug = ended.thread.name if ended.thread else "", ended.exc_value
    structlog.get_logger().critical("a thread ended", thread=name, bug=bug or ended.exc_type.__name__)


def set_up(*, level: str, form: Literal["console", "json"], service: str) -> None:
    """
    Log to standard error, a line an event; libraries that use `logging` come out the same way, from warning on.

    Logging never raises: a line that cannot be written is lost, and the next that can says how many were
    (`lost_lines`). Of an exception only types and places are logged.
    """
    lines = _Lines(sys.stderr)  # None in a process without one
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_patient,
        _without_texts,
        lines.tell_lost,
    ]
    structlog.configure(
        processors=[*shared, _renderer(form)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
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

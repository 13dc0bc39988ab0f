"""The log: structured events, set up once per process; patient data and secrets never get in."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

#: Keys that would name a patient; an event that has one loses its value.
_NEVER = frozenset(
    {"patient_name", "patient_id", "patient_birth_date", "accession_number", "password", "token", "secret", "tags"}
)


def _without_patient(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _NEVER & event.keys():
        event[key] = "(not logged)"
    return event


def set_up(*, level: str, form: Literal["console", "json"], service: str) -> None:
    """Log to standard error, a line an event; libraries that use `logging` come out the same way, from warning on."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_patient,
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)

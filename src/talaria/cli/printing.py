"""How commands print: aligned tables, and JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from talaria.model.job import Job, Priority

if TYPE_CHECKING:
    from talaria.store.operations import Pause


def print_jobs(items: Sequence[Job], *, empty: str = "No job.") -> None:
    """Jobs as a table."""
    print_table(
        ("JOB", "KIND", "STATE", "RULE", "TARGET", "TRY", "UPDATED", "DUE", "REASON"),
        [
            (
                job.id, job.kind, job.state, job.rule, job.target or "", job.attempt, ago(job.updated),
                "" if job.state.is_final else ago(job.due), job.reason,
            )
            for job in items
        ],
        empty=empty,
    )  # fmt: skip


def print_paused(paused: Sequence["Pause"]) -> None:
    """What is stopped, under a table that it explains; nothing where all goes on."""
    if not paused:
        return
    click.echo("")
    for pause in paused:
        click.echo(cell(f"paused {ago(pause.since)}: {pause}"))


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "Nothing.") -> None:
    """Columns aligned, numbers to the right; the last column takes what is left."""
    if not rows:
        click.echo(empty)
        return
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(head)]
    numeric = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    for line in (list(head), *cells):
        padded = (
            text.rjust(w) if right else text.ljust(w) for text, w, right in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def cell(value: Any) -> str:
    """Text that cannot do anything to a terminal, of one line and bounded."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= 100 else text[:99] + "…"


def ago(moment: datetime) -> str:
    """How long ago, or in how long, in the largest unit that fits."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    size = abs(seconds)
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (float("inf"), 86_400, "d")):
        if size < limit:
            return f"{size / length:.0f} {unit} ago" if seconds >= 0 else f"in {size / length:.0f} {unit}"
    raise AssertionError


def as_pinned(job: Job) -> Mapping[str, Any]:
    """A job by the names that the API has for its fields."""
    fields = dataclasses.asdict(job)
    for ours in ("study_id", "case_id"):
        del fields[ours]
    named = {"study_uid": fields.pop("study_instance_uid"), "series_uid": fields.pop("series_instance_uid")}
    return {"id": fields.pop("id"), **named, **fields, "priority": job.priority.name.lower()}


def in_words(value: Any) -> str:
    """A field of a job; a moment in the time of whoever reads it."""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    if isinstance(value, Priority):
        return value.name.lower()
    return "" if value is None else str(value)


def print_json(value: Any) -> None:
    """A value as JSON, keys in their own order."""
    click.echo(json.dumps(plain(value), ensure_ascii=False, indent=2))


def plain(value: Any) -> Any:
    """What JSON can say; moments as ISO 8601 in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value

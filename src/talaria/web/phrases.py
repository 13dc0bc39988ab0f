"""How ages, sizes, moments and events are said on a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SIZES = ("bytes", "KB", "MB", "GB", "TB", "PB")


def span_in_words(length: timedelta) -> str:
    """
    A length of time, in one unit, rounded down.

    >>> [span_in_words(timedelta(seconds=s)) for s in (0.4, 59, 200, 7300, 864000)]
    ['0 s', '59 s', '3 min', '2 h', '10 d']
    """
    seconds = int(max(length.total_seconds(), 0))
    for unit, word in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit} {word}"
    return "0 s"


def seconds_in_words(seconds: float) -> str:
    """
    What work took.

    >>> seconds_in_words(2.25), seconds_in_words(185)
    ('2.2 s', '3 min')
    """
    return f"{seconds:.1f} s" if seconds < 10 else span_in_words(timedelta(seconds=seconds))


def thousands(number: int) -> str:
    """
    A number with thin blanks between thousands.

    >>> thousands(1234567)
    '1\u2009234\u2009567'
    """
    return f"{number:,}".replace(",", "\u2009")


def bytes_in_words(size_bytes: int) -> str:
    """
    A size with three digits that matter; 1 KB is 1000 bytes, as on the label of a disk.

    >>> [bytes_in_words(n) for n in (0, 999, 52_428_800, 1_500_000_000_000)]
    ['0 bytes', '999 bytes', '52.4 MB', '1.50 TB']
    """
    size, unit = float(size_bytes), 0
    while size >= 999.5 and unit < len(_SIZES) - 1:
        size, unit = size / 1000, unit + 1
    digits = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {_SIZES[unit]}"


def name_in_words(patient_name: str) -> str:
    """
    A person name as it is read: family name, given names; the first way of writing it (PS3.5 6.2.1).

    >>> name_in_words("Müller^Anna^Maria"), name_in_words("Yamada^Tarou=山田^太郎"), name_in_words("")
    ('Müller, Anna Maria', 'Yamada, Tarou', '')
    """
    family, *given = patient_name.partition("=")[0].split("^")
    others = " ".join(part for part in given if part)
    return ", ".join(part.strip() for part in (family, others) if part.strip())


@dataclass(frozen=True, kw_only=True)
class Clockface:
    """Says moments as seen from *now*."""

    now: datetime
    zone: tzinfo
    """Of the reader."""

    def ago(self, moment: datetime) -> str:
        """
        >>> noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
        >>> [Clockface(now=noon, zone=UTC).ago(noon - timedelta(seconds=s)) for s in (0, 200, -7300)]
        ['just now', '3 min ago', 'in 2 h']
        """
        length = self.now - moment
        if abs(length) < timedelta(seconds=1):
            return "just now"
        return f"{span_in_words(length)} ago" if length > timedelta(0) else f"in {span_in_words(-length)}"

    def age(self, moment: datetime) -> str:
        """How long ago."""
        return span_in_words(self.now - moment)

    def local(self, moment: datetime) -> str:
        """The moment itself, on the reader's clock, ISO 8601."""
        return moment.astimezone(self.zone).isoformat(timespec="seconds")

    def clock(self, moment: datetime) -> str:
        """The same, for a list that is read."""
        return moment.astimezone(self.zone).strftime("%Y-%m-%d %H:%M:%S")

    def utc(self, moment: datetime) -> str:
        """The moment itself in UTC, for a machine."""
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


#: What an event of the ledger says; braces take its details.
_EVENTS: Mapping[str, str] = {
    "series.asked": "the rules were asked: {fired}; {why}",
    "series.derived": "a module made a series of {instances} instances",
    "series.cleaned": "the files of a series were removed: {reason}",
    "study.complete": "the study is complete for rule {rule}: {why}",
    "case.collecting": "rule {rule} matched and collects the series of the study; {reason}",
    "case.closed": "rule {rule} matched; {reason}",
    "case.discarded": "no rule takes it: {reason}",
    "case.held": "rule {rule} is held: {reason}",
    "case.supplement": "late instances came for rule {rule}: supplement {supplement}",
    "instance.repeat": "identical copies of {count} instances came again; they were counted",
    "instance.conflict": "other content came under SOP Instance UID {sop_instance_uid}; both are kept, the newest used",
    "module.ran": "module {module} ran for {seconds} s and ended with {code}: {reason}",
    "result.odd": "the result of module {module} was mended: {reason}",
    "result.unreadable": "the result of module {module} was not kept: {reason}",
    "case.dismissed": "rule {rule} has nothing of it any more: {reason}",
    "series.routed": "a series was taken to rule {fired} by {actor}",
    "study.routed": "the study was taken to rule {rule} by {actor}",
    "study.released": "released by {actor}: the rules are asked again",
    "study.sent": "sent to {target} by {actor}",
    "operation": "{act} by {actor}: {done} done, {refused} refused",
    "work.paused": "{work} {target} was paused by {actor}: {reason}",
    "work.resumed": "{work} {target} goes on, asked by {actor}",
    "series.held": "held: {reason}",
    "series.lost": "the files of {instances} images are gone; {left} are left",
    "ledger.restored": "restored by {actor} from the backup of {made}; {deliveries_held} deliveries held",
    "ledger.rebuilt": "the ledger was made anew by {actor}",
    "spool.compared": "the spool was compared with the ledger: {files} files, {lost} images gone",
    "job.made": "made: {job_kind} for rule {rule}, target {target}",
    "job.claim": "taken up, attempt {attempt}",
    "job.finish": "done",
    "job.defer": "put off: {reason}",
    "job.fail": "failed: {reason}",
    "job.break": "held: {reason}",
    "job.expire": "due again: {reason}",
    "job.yield": "given back: {reason}",
    "job.retry": "tried again, asked by {actor}",
    "job.hold": "held, asked by {actor}",
    "job.release": "released, asked by {actor}",
    "job.cancel": "cancelled, asked by {actor}",
    "job.restart": "begun again, asked by {actor}",
    "ledger.pruned": "what nobody needs any more was forgotten: {forgotten}",
}


def event_in_words(kind: str, *, actor: str, detail: Mapping[str, Any]) -> str:
    """
    What an event says; one we have no words for says its kind and details.

    >>> event_in_words("job.defer", actor="", detail={"reason": "archive: refused"})
    'put off: archive: refused'
    >>> event_in_words("disk.odd", actor="", detail={"free": 3})
    'disk.odd: free 3'
    """
    words = _EVENTS.get(kind)
    said = {key: _said(value) for key, value in detail.items()}
    if words is None:
        rest = ", ".join(f"{key} {value}" for key, value in said.items())
        return f"{kind}: {rest}" if rest else kind
    return words.format_map(_Blanks({**said, "actor": actor})).removesuffix(", target ").rstrip(": ;")


class _Blanks(dict[str, str]):
    """What an event does not say is left out."""

    def __missing__(self, key: str) -> str:
        return ""


def _said(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none matched"
    return str(value)

"""Whether we live and are well: the ledger, the spools, the services."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from fastapi import Request
from fastapi.responses import JSONResponse

from talaria.model.errors import LedgerAway, NoRoom
from talaria.store.listing import Listing, QueueLine, WorkerLine
from talaria.store.operations import Operations, Pause
from talaria.store.spool import Spool
from talaria.store.workers import SILENCE
from talaria.web.auth import Doorman
from talaria.web.phrases import bytes_in_words, span_in_words

#: A service that ended without a word is missed for this long.
MISSED = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """Something that we need to work."""

    name: str
    ready: bool
    detail: str
    """How it stands, in words."""


@dataclass(frozen=True, kw_only=True)
class ServiceStanding:
    """One service, however many processes run it."""

    name: str
    is_heard: bool
    processes: tuple[WorkerLine, ...]
    """Those heard of lately; if none is, the one heard of last."""

    @property
    def started(self) -> datetime:
        """When the oldest of them began."""
        return min(process.started for process in self.processes)

    @property
    def seen(self) -> datetime:
        """When one of them was heard of last."""
        return max(process.seen for process in self.processes)


@dataclass(frozen=True, kw_only=True)
class DiskStanding:
    """The file system of one spool."""

    path: str
    size_bytes: int
    free_bytes: int
    trouble: str
    """Why nothing can be stored there, in words; empty when something can."""

    @property
    def used_bytes(self) -> int:
        """What is taken, by whomever."""
        return self.size_bytes - self.free_bytes

    @property
    def used_percent(self) -> int:
        """The same, of a hundred; rounded down, so that only a full disk is full."""
        return 100 * self.used_bytes // max(self.size_bytes, 1)


def services_of(workers: Sequence[WorkerLine], *, now: datetime) -> tuple[ServiceStanding, ...]:
    """
    Services by name; one is heard of if any process of it is.

    Args:
        workers: Those heard of within `MISSED`.
        now: Silence is measured to here.
    """
    return tuple(
        _service([worker for worker in workers if worker.service == name], now)
        for name in sorted({worker.service for worker in workers})
    )


def _service(workers: Sequence[WorkerLine], now: datetime) -> ServiceStanding:
    heard = tuple(worker for worker in workers if now - worker.seen <= SILENCE)
    last = max(workers, key=lambda worker: worker.seen)
    return ServiceStanding(name=last.service, is_heard=bool(heard), processes=heard or (last,))


def disk_of(spool: Spool, *, reserve_bytes: int) -> DiskStanding:
    """How a spool's disk stands; one that is gone is told, not raised."""
    size, free, trouble = 0, 0, ""
    try:
        spool.check()
        size, free = spool.capacity()
    except NoRoom as error:
        trouble = str(error)
    except OSError as error:
        trouble = f"spool {spool.root}: {error.strerror}; is the disk mounted?"
    if not trouble and free < reserve_bytes:
        trouble = (
            f"{bytes_in_words(free)} free, and nothing is accepted below {bytes_in_words(reserve_bytes)}; make room"
        )
    return DiskStanding(path=str(spool.root), size_bytes=size, free_bytes=free, trouble=trouble)


class Health:
    """Answers `/health/...`."""

    def __init__(
        self,
        *,
        listing: Listing,
        operations: Operations,
        spools: Sequence[Spool],
        doorman: Doorman,
        clock: Callable[[], datetime],
        reserve_bytes: int,
    ) -> None:
        self._listing, self._operations = listing, operations
        self._spools, self._doorman, self._clock = spools, doorman, clock
        self._reserve_bytes = reserve_bytes

    def live(self) -> JSONResponse:
        """Whether this process answers: it does."""
        return JSONResponse({"status": "alive"})

    def ready(self, request: Request) -> JSONResponse:
        """Whether all we need is there; who shows a token learns what is not."""
        now = self._clock()
        dependencies = [*self._disks(), *self._ledger_and_services(now)]
        is_ready = all(dependency.ready for dependency in dependencies)
        answer: dict[str, object] = {"ready": is_ready}
        try:
            if self._doorman.caller(request) is not None:
                answer["dependencies"] = [asdict(dependency) for dependency in dependencies]
                pauses = self._operations.paused()
                answer["queues"] = [_queue(line, pauses, now) for line in self._listing.queue()]
                answer["pauses"] = [_pause(pause) for pause in pauses]
        except LedgerAway:
            is_ready = answer["ready"] = False
        return JSONResponse(answer, status_code=200 if is_ready else 503)

    def _disks(self) -> list[Dependency]:
        disks = [disk_of(spool, reserve_bytes=self._reserve_bytes) for spool in self._spools]
        return [
            Dependency(
                name=f"spool {disk.path}",
                ready=not disk.trouble,
                detail=disk.trouble or f"{bytes_in_words(disk.free_bytes)} free of {bytes_in_words(disk.size_bytes)}",
            )
            for disk in disks
        ]

    def _ledger_and_services(self, now: datetime) -> list[Dependency]:
        try:
            services = services_of(self._listing.workers(since=now - MISSED), now=now)
            drains = [pause for pause in self._operations.paused() if pause.kind == "drain"]
        except LedgerAway as error:
            return [Dependency(name="ledger", ready=False, detail=str(error))]
        none = Dependency(name="services", ready=False, detail="none was heard of; start them with `talaria serve`")
        return [
            Dependency(name="ledger", ready=True, detail="answers"),
            *([_heard(service, now) for service in services] or [none]),
            *(Dependency(name="drain", ready=False, detail=_drained(pause)) for pause in drains),
        ]


def _heard(service: ServiceStanding, now: datetime) -> Dependency:
    silence = span_in_words(now - service.seen)
    return Dependency(
        name=f"service {service.name}",
        ready=service.is_heard,
        detail=f"{len(service.processes)} running" if service.is_heard else f"not heard of for {silence}",
    )


def _queue(line: QueueLine, pauses: Sequence[Pause], now: datetime) -> dict[str, object]:
    return {
        "kind": line.kind,
        "target": line.target,
        "states": dict(line.states),
        "oldest_seconds": None if line.oldest is None else round((now - line.oldest).total_seconds(), 3),
        "paused": any(
            pause.kind == "drain" or (pause.kind == line.kind and pause.target in {"", line.target or ""})
            for pause in pauses
        ),
    }


def _pause(pause: Pause) -> dict[str, object]:
    since = pause.since.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"kind": pause.kind, "target": pause.target, "actor": pause.actor, "reason": pause.reason, "since": since}


def _drained(pause: Pause) -> str:
    why = f": {pause.reason}" if pause.reason else ""
    return f"nothing new is accepted, asked by {pause.actor}{why}; end it with `talaria drain --end`"

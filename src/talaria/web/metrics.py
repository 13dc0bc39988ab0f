"""`/metrics`: figures for Prometheus; of how much and how long, never of whom."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from talaria import __version__
from talaria.model.errors import LedgerAway
from talaria.model.job import Kind, State
from talaria.store.listing import Listing
from talaria.store.metering import JobCount, Metering
from talaria.store.operations import Operations
from talaria.store.revisions import Revisions
from talaria.store.spool import Spool
from talaria.web.health import MISSED, disk_of, services_of

#: What waits for a target; what failed or is held waits for a person.
_WAITING = frozenset({State.PENDING, State.ACTIVE, State.DEFERRED})

#: Targets told one by one; a rulebook has fewer, and jobs may be left of those it had.
_MOST_TARGETS = 1000


class Metrics:
    """Answers `/metrics`."""

    def __init__(
        self,
        *,
        metering: Metering,
        listing: Listing,
        revisions: Revisions,
        operations: Operations,
        spools: Sequence[Spool],
        clock: Callable[[], datetime],
        reserve_bytes: int,
    ) -> None:
        self._metering, self._listing, self._revisions = metering, listing, revisions
        self._operations, self._spools, self._clock = operations, spools, clock
        self._reserve_bytes = reserve_bytes

    def metrics(self) -> PlainTextResponse:
        """All figures, in the text format of Prometheus; with the ledger away, those that need none."""
        registry = CollectorRegistry()
        registry.register(_Gathered([*self._of_machine(), *self._of_ledger()]))
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _of_machine(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("talaria_info", "Which version runs; always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        free = GaugeMetricFamily("talaria_disk_free_bytes", "Free on the disk of a spool.", labels=["spool"])
        size = GaugeMetricFamily("talaria_disk_size_bytes", "Size of the disk of a spool.", labels=["spool"])
        usable = GaugeMetricFamily("talaria_spool_up", "Whether instances can be stored there.", labels=["spool"])
        for spool in self._spools:
            disk = disk_of(spool, reserve_bytes=self._reserve_bytes)
            free.add_metric([disk.path], disk.free_bytes)
            size.add_metric([disk.path], disk.size_bytes)
            usable.add_metric([disk.path], not disk.trouble)
        return (info, free, size, usable)

    def _of_ledger(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("talaria_ledger_up", "Whether the database answers.")
        try:
            found = [*self._of_arrivals(), *self._of_deliveries(), *self._of_work()]
        except LedgerAway:
            up.add_metric([], 0)
            return (up,)
        up.add_metric([], 1)
        return (up, *found)

    def _of_arrivals(self) -> Iterable[Metric]:
        labels = ["calling_ae"]
        instances = CounterMetricFamily(
            "talaria_instances_received", "Instances received, identical copies not counted.", labels=labels
        )
        repeats = CounterMetricFamily(
            "talaria_repeats_received", "Identical copies of instances, received again.", labels=labels
        )
        size = CounterMetricFamily("talaria_bytes_received", "Bytes of these instances.", labels=labels)
        for sender in self._metering.received():
            instances.add_metric([sender.calling_ae], sender.instances)
            repeats.add_metric([sender.calling_ae], sender.repeats)
            size.add_metric([sender.calling_ae], sender.size_bytes)
        return (instances, repeats, size)

    def _of_deliveries(self) -> Iterable[Metric]:
        took = HistogramMetricFamily(
            "talaria_delivery_seconds",
            "From when a delivery was made, or was asked for again, until the target had all of it; waits included.",
            labels=["target"],
        )
        for target in self._metering.delivered()[:_MOST_TARGETS]:
            buckets = [(str(float(bound)), float(count)) for bound, count in target.up_to.items()]
            took.add_metric([target.target], [*buckets, ("+Inf", float(target.count))], target.seconds)
        return (took,)

    def _of_work(self) -> Iterable[Metric]:
        now = self._clock()
        services = GaugeMetricFamily("talaria_service_up", "Whether a service is heard of.", labels=["service"])
        for service in services_of(self._listing.workers(since=now - MISSED), now=now):
            services.add_metric([service.name], service.is_heard)
        revision = GaugeMetricFamily("talaria_rulebook_revision", "The revision of the rulebook that was saved last.")
        revision.add_metric([], self._revisions.latest())
        paused = GaugeMetricFamily(
            "talaria_paused", "What a person has stopped for a while; drain is all of it.", labels=["kind", "target"]
        )
        for pause in self._operations.paused()[:_MOST_TARGETS]:
            paused.add_metric([pause.kind, pause.target], 1)
        counts = self._metering.jobs()
        return (services, revision, paused, _jobs(counts), _oldest(counts, now))


def _jobs(counts: Sequence[JobCount]) -> Metric:
    """Every kind and state, those of which there are none too: what is missing cannot be watched."""
    numbers = {(kind, state): 0 for kind in Kind for state in State}
    for count in counts:
        numbers[count.kind, count.state] += count.number
    family = GaugeMetricFamily("talaria_jobs", "Jobs by kind and state.", labels=["kind", "state"])
    for (kind, state), number in numbers.items():
        family.add_metric([kind, state], number)
    return family


def _oldest(counts: Sequence[JobCount], now: datetime) -> Metric:
    family = GaugeMetricFamily(
        "talaria_queue_oldest_seconds", "Since the oldest job that waits for a target was made.", labels=["target"]
    )
    oldest: dict[str, datetime] = {}
    for count in counts:
        if count.kind is Kind.DISPATCH and count.state in _WAITING and count.target and count.oldest is not None:
            oldest[count.target] = min(count.oldest, oldest.get(count.target, count.oldest))
    for target in sorted(oldest)[:_MOST_TARGETS]:
        family.add_metric([target], max((now - oldest[target]).total_seconds(), 0.0))
    return family


class _Gathered(Collector):
    """What was gathered, for the library that writes it down."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        return self._metrics

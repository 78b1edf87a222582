"""What Prometheus reads: the queue as it is when asked, what all workers have counted, and this process's own requests.

Every gateway gives the same numbers of the queue: queries take the ``max`` of them. Those named ``finetune_gateway_``
are each process's own, to be added up. No label names a job, a worker or a URL.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import inf

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from finetune_queue.gateway.gauges import UP, Queue, look
from finetune_queue.store import COUNTED, Counted, Metric, RedisError

log = structlog.get_logger(__name__)

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


class QueueCollector(Collector):
    """Reads the store at each scrape."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def describe(self) -> Iterator[Family]:
        """Name nothing, so that registering asks Redis nothing."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """Yield every number; only ``finetune_up`` while Redis is out of reach."""
        try:
            seen = look(self._queue)
            counted = self._queue.counters.read()
        except RedisError as error:
            log.warning("metrics_without_redis", error=str(error), error_type=type(error).__name__)
            yield _family(UP, [((), 0.0)])
            return
        yield _family(UP, [((), 1.0)])
        for metric, samples in seen.items():
            yield _family(metric, samples)
        for metric in COUNTED:
            yield _counted(metric, counted[metric])


def _family(metric: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _counted(metric: Metric, series: Mapping[tuple[str, ...], Counted]) -> Family:
    if metric.kind != "histogram":
        return _family(metric, [(labels, each.value) for labels, each in series.items()])
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, each in series.items():
        bounds = sorted({*metric.buckets, *each.buckets, inf})  # also those of another version
        sums = accumulate(each.buckets.get(bound, 0.0) for bound in bounds)
        names = ["+Inf" if bound == inf else str(bound) for bound in bounds]
        family.add_metric(labels, list(zip(names, sums, strict=True)), each.value)
    return family


REQUESTS = Metric("finetune_gateway_requests_total", "counter", "HTTP requests", ("method", "route", "status"))
REQUEST_SECONDS = Metric(
    "finetune_gateway_request_seconds", "histogram", "Time to answer, streams not counted", ("route",)
)
OF_PROCESS = (REQUESTS, REQUEST_SECONDS)


class Metrics:
    """The numbers of one gateway process."""

    def __init__(self, queue: Queue) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(QueueCollector(queue))
        self._requests = Counter(REQUESTS.name, REQUESTS.meaning, REQUESTS.labels, registry=self._registry)
        self._seconds = Histogram(
            REQUEST_SECONDS.name, REQUEST_SECONDS.meaning, REQUEST_SECONDS.labels, registry=self._registry
        )
        for labels in _FROM_ZERO:
            self._requests.labels(*labels)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        if not route.endswith("/stream"):
            self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


_FROM_ZERO = (
    *(("POST", "/v1/jobs", status) for status in ("202", "500", "503")),
    ("POST", "/hooks/{account}/{token}", "202"),
)
"""What queries of ops/monitoring and docs/slo.md select. Prometheus sees no increase in a series that begins with 1."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})

"""What Prometheus reads: the queue as it is when asked, and this process's own requests. No label names a job."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_queue.errors import QueueUnavailableError
from finetune_queue.messaging import Messenger
from finetune_queue.store import Accounts, AccountStatus, Overview, RedisError, UnknownAccountError

_ACCOUNT: Mapping[str, tuple[str, Callable[[AccountStatus], float]]] = {
    "calls_limit": ("API calls that an account may make in its window", lambda status: status.limits.calls),
    "window_seconds": ("The window of an account's limit", lambda status: status.limits.window),
    "slots_used": ("Call slots of an account that are in use, or not free again yet", lambda status: status.used),
    "waiting": ("Jobs that wait for a call of an account", lambda status: status.waiting),
    "trainings": ("Trainings of an account that Segmind works on", lambda status: status.tracked),
    "submits_today": ("Paid submits of an account this day (UTC)", lambda status: status.spent_today),
    "paused_seconds": ("For how long an account is paused after a 429 or an outage", lambda status: status.paused_for),
    "stopped": ("1 while the kill switch of an account's submits is thrown", lambda status: int(status.stopped)),
}


class QueueCollector(Collector):
    """Reads the store at each scrape."""

    def __init__(self, overview: Overview, accounts: Accounts, messenger: Messenger) -> None:
        self._overview = overview
        self._accounts = accounts
        self._messenger = messenger

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name nothing, so that registering asks Redis nothing."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every number; only ``finetune_up`` while Redis is out of reach."""
        try:
            found = [*self._store(), *self._account_numbers(), *self._queues()]
        except (RedisError, QueueUnavailableError):
            found = []
        yield GaugeMetricFamily("finetune_up", "Whether the queue's Redis could be read", value=float(bool(found)))
        yield from found

    def _store(self) -> Iterator[GaugeMetricFamily]:
        look = self._overview.look()
        jobs = GaugeMetricFamily("finetune_jobs", "Jobs in each state", labels=["state"])
        oldest = GaugeMetricFamily(
            "finetune_oldest_job_seconds", "For how long the oldest job is in a state that it leaves", labels=["state"]
        )
        for view in look.states:
            jobs.add_metric([view.state], view.count)
            if not view.state.terminal:
                oldest.add_metric([view.state], view.oldest or 0.0)
        yield jobs
        yield oldest
        yield GaugeMetricFamily(
            "finetune_overdue_seconds", "By how much the oldest deadline has passed", value=look.overdue
        )
        yield GaugeMetricFamily("finetune_dead_letters", "Messages that were set aside", value=look.dead_letters)

    def _account_numbers(self) -> Iterator[GaugeMetricFamily]:
        accounts = [status for name in self._accounts.names() if (status := self._status(name)) is not None]
        for name, (meaning, read) in _ACCOUNT.items():
            family = GaugeMetricFamily(f"finetune_account_{name}", meaning, labels=["account"])
            for status in accounts:
                family.add_metric([status.name], read(status))
            yield family

    def _status(self, name: str) -> AccountStatus | None:
        try:
            return self._accounts.status(name)
        except UnknownAccountError:
            return None

    def _queues(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("finetune_queue_messages", "Messages that wait in a Celery queue", labels=["queue"])
        for queue, length in self._messenger.lengths().items():
            family.add_metric([queue], length)
        yield family


class Metrics:
    """The numbers of one gateway process."""

    def __init__(self, collector: QueueCollector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._requests = Counter(
            "finetune_gateway_requests_total", "HTTP requests", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "finetune_gateway_request_seconds",
            "Time to answer, streams not counted",
            ["route"],
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        if not route.endswith("/stream"):
            self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})

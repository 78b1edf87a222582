"""What the processes of the service count, summed in one Redis hash, so that any number of them have one truth.

What a change of a job says is counted by the script that makes the change (:file:`lua/transition.lua`), exactly. All
else is summed in each process and added to the hash :data:`EVERY` second, by one pipeline and only if there is news: a
process that is killed loses its last second, and a batch whose answer was lost is counted twice.

A field of the hash is ``metric|label|label``; a histogram has one for each bucket that was ever hit, and its sum.
"""

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, cast

import redis
import structlog

from finetune_queue.contract.job import JobState
from finetune_queue.store import keys

log = structlog.get_logger(__name__)

EVERY = 1.0
"""Seconds after which what a process counted is sent."""

AGAIN = 5.0
"""Seconds after which it is sent again if Redis was out of reach."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that Prometheus reads. ``zeros`` are labels that are shown before anything was counted with them, so
    that a rate sees their first increment; ``buckets`` are the upper bounds of a histogram's."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    zeros: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()


_QUICK = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_HOURS = (60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, 259200.0)

JOBS_ENTERED = Metric(
    "finetune_jobs_entered_total",
    "counter",
    "Jobs that entered each state; `accepted` are new ones, `succeeded`, `failed` and `cancelled` ended ones",
    ("state",),
    zeros=tuple((state,) for state in JobState),
)
_FAILURES = (
    *("deadline_passed", "worker_lost", "internal_error", "submit_unanswered", "dataset_rejected", "training_failed"),
    *("api_key_rejected", "credits_exhausted", "forbidden", "disk_full", "disk_failed", "no_access", "place_missing"),
    "deploy_failed",
)
"""The codes of most failed jobs, which the worker and the stores give. Of any other, a rate misses the first."""

JOBS_FAILED = Metric(
    "finetune_jobs_failed_total",
    "counter",
    "Jobs that failed, by the code of their error",
    ("code",),
    zeros=tuple((code,) for code in _FAILURES),
)
JOB_SECONDS = Metric(
    "finetune_job_seconds",
    "histogram",
    "Time from accepted to ended, of jobs that a worker ended",
    ("outcome",),
    buckets=_HOURS,
)
STAGE_SECONDS = Metric(
    "finetune_stage_seconds",
    "histogram",
    "Time that a stage ran, by what came of it: done, wait, retry, fail, attention",
    ("stage", "outcome"),
    buckets=_LONG,
)
API_CALLS = Metric(
    "finetune_api_calls_total",
    "counter",
    "Calls of Segmind's API that workers made, by their result: `ok`, or the code of the error",
    ("account", "endpoint", "result"),
)
API_CALL_SECONDS = Metric(
    "finetune_api_call_seconds", "histogram", "Time that a call of Segmind's API took", ("endpoint",), buckets=_QUICK
)
TRANSFERRED_BYTES = Metric(
    "finetune_transferred_bytes_total",
    "counter",
    "Bytes of datasets uploaded and of weights downloaded, counted when a transfer has succeeded",
    ("direction",),
    zeros=(("upload",), ("download",)),
)
DELIVERIES = Metric(
    "finetune_deliveries_total",
    "counter",
    "Attempts to deliver events to sinks: delivered, failed, dead (given up)",
    ("outcome",),
    zeros=(("delivered",), ("failed",), ("dead",)),
)
TAKEOVERS = Metric(
    "finetune_takeovers_total",
    "counter",
    "Jobs taken over from a worker that gave no sign of life while Redis was reachable",
    zeros=((),),
)
LOST_MESSAGES = Metric(
    "finetune_lost_messages_total",
    "counter",
    "Messages sent again because nobody had picked up the first one in time",
    zeros=((),),
)
UNKNOWN_STATUSES = Metric(
    "finetune_unknown_provider_statuses_total",
    "counter",
    "Changes of a training to a status that Segmind's documentation does not name",
    zeros=((),),
)
PAID_TWICE = Metric(
    "finetune_trainings_paid_twice_total",
    "counter",
    "Jobs for which Segmind's list showed more than one training with their mark: each is charged",
    zeros=((),),
)

COUNTED = (
    *(JOBS_ENTERED, JOBS_FAILED, JOB_SECONDS, STAGE_SECONDS, API_CALLS, API_CALL_SECONDS, TRANSFERRED_BYTES),
    *(DELIVERIES, TAKEOVERS, LOST_MESSAGES, UNKNOWN_STATUSES, PAID_TWICE),
)


def counter_field(metric: Metric, *labels: str) -> str:
    """Return the name of a counter's field in the hash."""
    if len(labels) != len(metric.labels):
        message = f"{metric.name} has the labels {metric.labels}, not {labels}"
        raise ValueError(message)
    return "|".join([metric.name, *labels])


@dataclass(slots=True)
class Counted:
    """One series as it is in the hash. ``value`` is a counter's value, or a histogram's sum; ``buckets`` holds how many
    fell into each bucket alone, by its upper bound."""

    value: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


class Counters:
    """What this process counts. Safe in threads; not to be taken across a fork."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._lock = threading.Lock()
        self._unsent: defaultdict[str, float] = defaultdict(float)
        self._timer: threading.Timer | None = None

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Count something. Sends nothing yet."""
        self._add({counter_field(metric, *labels): by})

    def observe(self, metric: Metric, *labels: str, seconds: float) -> None:
        """Count how long something took. Sends nothing yet."""
        name = counter_field(metric, *labels)
        bound = next((bound for bound in metric.buckets if seconds <= bound), math.inf)
        self._add({f"{name}|{bound:g}": 1.0, f"{name}|sum": seconds})

    def send(self) -> None:
        """Send what was counted since the last time; if Redis is out of reach, once more later."""
        with self._lock:
            batch, self._unsent = self._unsent, defaultdict(float)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        if not batch:
            return
        pipe = self._redis.pipeline(transaction=False)
        for name, amount in batch.items():
            pipe.hincrbyfloat(keys.counters(), name, amount)
        try:
            pipe.execute()
        except redis.RedisError as error:
            log.warning("counters_not_sent", error=str(error), again_in_s=AGAIN)
            self._add(batch, after=AGAIN)

    def read(self) -> dict[Metric, dict[tuple[str, ...], Counted]]:
        """Return what all processes have counted, with each metric's zeros.

        Raises:
            redis.RedisError: the store is out of reach.
        """
        known = {metric.name: metric for metric in COUNTED}
        found: dict[Metric, dict[tuple[str, ...], Counted]] = {
            metric: {labels: Counted() for labels in metric.zeros} for metric in COUNTED
        }
        rows = cast("dict[str, str]", self._redis.hgetall(keys.counters()))
        for name, text in rows.items():
            first, *labels = name.split("|")
            metric = known.get(first)
            if metric is None:
                continue  # of another version
            last = labels.pop() if metric.kind == "histogram" else "sum"
            series = found[metric].setdefault(tuple(labels), Counted())
            if last == "sum":
                series.value = float(text)
            else:
                series.buckets[float(last)] = float(text)
        calls = found[API_CALLS]
        for account, endpoint in {labels[:2] for labels in calls}:  # for which no zeros can be known before
            calls.setdefault((account, endpoint, "rate_limited"), Counted())
        return found

    def _add(self, amounts: dict[str, float], *, after: float = EVERY) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._unsent[name] += amount
            if self._timer is None:
                timer = threading.Timer(after, self.send)
                timer.daemon = True
                timer.name = "counters"
                try:
                    timer.start()
                except RuntimeError as error:  # the system has no thread left: what counts next asks again
                    log.warning("counters_not_sent", error=str(error))
                else:
                    self._timer = timer

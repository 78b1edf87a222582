"""The queue as it is now, in numbers: what each means and how it is read from a look at the store."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from finetune_queue.errors import QueueUnavailableError
from finetune_queue.messaging import Messenger
from finetune_queue.store import (
    Accounts,
    AccountStatus,
    Counters,
    Metric,
    Overview,
    ServerFacts,
    SinkLines,
    SinksView,
    StateView,
    StoreView,
    Workers,
    accounts_in_use,
)

T = TypeVar("T")
Samples = list[tuple[tuple[str, ...], float]]
Read = Callable[[T], float | None]
"""Reads a number; None where there is none."""


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"finetune_{name}", "gauge", meaning, labels)


UP = _gauge("up", "1 if the queue's Redis could be read; 0 with no other number of the queue if not")

_STATES: dict[Metric, Read[StateView]] = {
    _gauge("jobs", "Jobs in each state", "state"): lambda view: view.count,
    _gauge("running_jobs", "Jobs in each state that a worker holds now", "state"): lambda view: view.running,
    _gauge("oldest_job_seconds", "How long the oldest job has been in a state that is not final", "state"): (
        lambda view: None if view.state.terminal else view.oldest or 0.0
    ),
}
_STORE: dict[Metric, Read[StoreView]] = {
    _gauge("overdue_seconds", "By how much the oldest job's next look is late; close to 0 while a worker is alive"): (
        lambda view: view.overdue
    ),
    _gauge("dead_letters", "Messages and events that were set aside"): lambda view: view.dead_letters,
}
_ACCOUNTS: dict[Metric, Read[AccountStatus]] = {
    _gauge("account_calls_limit", "API calls that an account may make in its window", "account"): (
        lambda status: status.limits.calls
    ),
    _gauge("account_window_seconds", "The window of an account's limit", "account"): lambda status: (
        status.limits.window
    ),
    _gauge("account_slots_used", "Call slots in use, or not free again yet", "account"): lambda status: status.used,
    _gauge("account_waiting", "Jobs that wait for a call", "account"): lambda status: status.waiting,
    _gauge("account_trainings", "Trainings that Segmind works on, or may be working on", "account"): (
        lambda status: status.in_flight
    ),
    _gauge("account_trainings_limit", "Cap on the account's trainings in flight, where set", "account"): (
        lambda status: status.limits.max_training
    ),
    _gauge("account_submits_today", "Paid submits this day (UTC)", "account"): lambda status: status.spent_today,
    _gauge("account_submits_limit", "Cap on the account's paid submits a day, where set", "account"): (
        lambda status: status.limits.max_submits_per_day
    ),
    _gauge("account_stopped", "1 while the kill switch for submits is on", "account"): (
        lambda status: int(status.stopped)
    ),
    _gauge(
        "account_paused_seconds", "How long the account stays paused, or at most while one call tests it", "account"
    ): lambda status: status.paused_for or status.tested_for,
    _gauge(
        "account_submits_paused_seconds", "The same of its submits, after Segmind refused one", "account"
    ): lambda status: status.submits_paused_for or status.submits_tested_for,
    _gauge("account_unlooked_seconds", "For how long no sweep saw the trainings; 0 without any", "account"): (
        lambda status: status.unlooked or 0.0
    ),
}
_UNWELL = _gauge(
    "account_unwell",
    "1, with the code of the last error, while no call of the account succeeds, or after a refused submit no submit; 0 "
    "with an empty code if all is well",
    *("account", "code"),
)
_WORKERS = _gauge("workers", "Workers that gave a sign of life within 35 s", "version")
_QUEUES = _gauge("queue_messages", "Messages that wait in a Celery queue; none while the broker is away", "queue")
_LINES = _gauge("sink_lines", "Places of sinks that events wait for: up, or down (out of reach)", "condition")
_SINKS: dict[Metric, Read[SinksView]] = {
    _gauge("sink_waiting", "Jobs whose events wait in those lines"): lambda view: view.waiting,
    _gauge("sink_lag_seconds", "For how long the worst line has been late, refused or down"): lambda view: view.lag,
}
_EMPTIED = _gauge("redis_emptied", "1 for a day after a worker saw that it had come back without its data")
_SERVER: dict[Metric, Read[ServerFacts]] = {
    _gauge("redis_used_bytes", "Memory that the jobs' Redis uses"): lambda facts: facts.used_bytes,
    _gauge("redis_max_bytes", "Memory that it may use (`maxmemory`); 0 without a limit"): lambda facts: facts.max_bytes,
    _gauge("redis_primary", "1 if it is a primary; a replica accepts no jobs"): lambda facts: int(not facts.replica),
    _gauge("redis_append_only", "1 if it keeps an append-only log"): lambda facts: int(facts.append_only),
    _gauge(
        "redis_log_ok", "1 if its last write to that log succeeded, and it refuses no write because a snapshot failed"
    ): lambda facts: int(facts.log_ok),
    _gauge("redis_noeviction", "1 if it never drops a key when full, as required"): (
        lambda facts: int(facts.eviction == "noeviction")
    ),
    Metric("finetune_redis_evicted_keys_total", "counter", "Keys that it dropped for lack of memory"): (
        lambda facts: facts.evicted
    ),
}

GAUGES = (UP, *_STATES, *_STORE, _WORKERS, _QUEUES, *_ACCOUNTS, _UNWELL, _LINES, *_SINKS, _EMPTIED, *_SERVER)


@dataclass(frozen=True)
class Queue:
    """What the numbers are read from."""

    overview: Overview
    accounts: Accounts
    messenger: Messenger
    sinks: SinkLines
    workers: Workers
    counters: Counters
    server: Callable[[], ServerFacts]


def look(queue: Queue) -> dict[Metric, Samples]:
    """Read every number but ``finetune_up``.

    Raises:
        RedisError: Redis is out of reach.
    """
    found: dict[Metric, Samples] = {}
    store = queue.overview.look()
    _read(found, _STATES, [((view.state,), view) for view in store.states])
    _read(found, _STORE, [((), store)])
    alive = queue.workers.alive()
    versions = Counter(worker.version for worker in alive)
    found[_WORKERS] = [((version,), count) for version, count in versions.items()]
    with suppress(QueueUnavailableError):  # a broker of its own: the jobs can still be seen
        found[_QUEUES] = [((name,), length) for name, length in queue.messenger.lengths().items()]
    accounts = [((status.name,), status) for status in accounts_in_use(queue.accounts, alive)]
    _read(found, _ACCOUNTS, accounts)
    found[_UNWELL] = [((status.name, status.unwell), float(bool(status.unwell))) for _, status in accounts]
    sinks = queue.sinks.view()
    found[_LINES] = [(("up",), sinks.up), (("down",), sinks.down)]
    _read(found, _SINKS, [((), sinks)])
    found[_EMPTIED] = [((), float(queue.workers.emptied_ms() is not None))]
    _read(found, _SERVER, [((), queue.server())])
    return found


def _read(
    found: dict[Metric, Samples], metrics: dict[Metric, Read[T]], views: Sequence[tuple[tuple[str, ...], T]]
) -> None:
    for metric, read in metrics.items():
        samples = [(labels, read(view)) for labels, view in views]
        found[metric] = [(labels, float(value)) for labels, value in samples if value is not None]

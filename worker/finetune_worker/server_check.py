"""Checks the Redis servers when a worker starts: it does not start on one that may drop jobs, or that holds the jobs of
the other API. And waits for a broker that takes no writes."""

import time
from functools import partial
from typing import Any

import structlog
from celery import bootsteps
from celery.exceptions import WorkerShutdown
from celery.worker import state
from celery.worker.consumer import Consumer

from finetune_queue.store import (
    MOST_SKEW,
    RedisError,
    ResponseError,
    clock_skew,
    connect,
    note_api,
    refuses_writes,
    server_facts,
    server_problems,
)
from finetune_worker.probes import ProbeStep

log = structlog.get_logger(__name__)

PAUSE = 1.0
"""Seconds between two tries to reach a server."""

STEADY = 3
"""How many times in a row a broker that refused writes has to take one before the worker connects. Close to its memory
limit it takes some and refuses others, and each time the worker would connect, fail and log the same again."""

MOST_WAIT = 5.0
"""Seconds between two tries to reach a broker that is away, at most."""

FAILOVER = 60.0
"""Seconds that a failover may take: a server that is a replica for longer is the wrong one."""


class ServerCheckStep(bootsteps.StartStopStep):
    """Checks the servers before anything is taken from them; waits for one that is away."""

    requires = (ProbeStep,)

    def start(self, parent: Any) -> None:
        """Check the servers, and say what to do about each that is not as it should be.

        Raises:
            WorkerShutdown: one is unfit; or the worker was told to stop while it waited.
        """
        settings = parent.app.finetune.settings
        servers = {"FINETUNE_REDIS_URL": settings.finetune_redis_url}
        if settings.finetune_broker_url not in {None, settings.finetune_redis_url}:
            servers["FINETUNE_BROKER_URL"] = settings.finetune_broker_url
        fit = [check_server(setting, url) for setting, url in servers.items()]
        if not (all(fit) and check_api(settings.finetune_redis_url, sandbox=settings.segmind_is_loopback)):
            raise WorkerShutdown(1)
        parent.app.finetune.container.presence.known_as(parent.hostname)
        parent.app.finetune.container.presence.clock_was_off(check_clock(settings.finetune_redis_url))


class PatientConsumer(Consumer):
    """Celery's consumer, but it connects only to a broker that takes writes, and soon after that is back. To a full one
    Celery would connect five times a second, and log a traceback each time."""

    def connect(self) -> Any:
        """Wait until the broker takes writes, and connect.

        Raises:
            WorkerShutdown, WorkerTerminate: the worker was told to stop meanwhile.
        """
        runtime = self.app.finetune  # type: ignore[attr-defined]
        url = runtime.settings.finetune_broker_url or runtime.settings.finetune_redis_url
        waiting, well = False, 0
        with connect(url) as client:
            while True:
                why = refuses_writes(client)
                if why and not waiting:
                    log.error("broker_refuses_writes", error=why, next="this worker waits until it takes them again")
                waiting, well = waiting or bool(why), 0 if why else well + 1
                if not waiting or well >= STEADY:
                    break
                runtime.container.pulse.excuse()
                state.maybe_shutdown()
                time.sleep(PAUSE)
        if waiting:
            log.info("broker_takes_writes")
        return super().connect()

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes. Celery's own wait grows by 2 s with each try, up to 30 s: after an outage of
        minutes the dispatcher would be back long before the messages that it sends are taken."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=MOST_WAIT)
        return super().ensure_connected(conn)


def check_api(url: str, *, sandbox: bool) -> bool:
    """Tell whether the jobs on this Redis are for the API that this worker calls: jobs for the sandbox must not be
    submitted to the paid API. Waits until the server answers.

    Raises:
        WorkerShutdown, WorkerTerminate: the worker was told to stop while it waited.
    """
    with connect(url) as client:
        while True:
            state.maybe_shutdown()
            try:
                other = note_api(client, "sandbox" if sandbox else "paid")
                break
            except ResponseError as error:  # it is full, and not noted for the other API: that is read first
                log.warning("api_not_noted", error=str(error))
                return True
            except RedisError:
                time.sleep(PAUSE)
    if other is None:
        return True
    theirs, ours = ("the paid API", "the sandbox") if sandbox else ("the sandbox", "the paid API")
    log.error(
        "redis_of_other_api",
        problem=f"the jobs and workers on this Redis are for {theirs}, and this worker calls {ours}",
        jobs=other.jobs,
        workers=other.workers,
        action="Give this worker a Redis database of its own; or let those jobs end, or cancel them, and stop those "
        "workers (one that was killed counts for 35 s).",
    )
    return False


def check_clock(url: str) -> int:
    """Return the seconds by which this machine's clock is ahead of Redis', and say what to do; 0 if near enough."""
    try:
        with connect(url) as client:
            skew = clock_skew(client)
    except RedisError as error:
        log.warning("clock_not_checked", error=str(error))
        return 0
    if abs(skew) <= MOST_SKEW:
        return 0
    log.warning(
        "clock_off",
        seconds=round(skew),
        action="Set this machine's clock and Redis's by NTP, then restart the worker: deadlines, event times and "
        "signatures depend on them.",
    )
    return round(skew)


def check_server(setting: str, url: str) -> bool:
    """Tell whether a worker may run on this server; waits until it answers, and while it is a replica for a while.

    Raises:
        WorkerShutdown, WorkerTerminate: the worker was told to stop while it waited.
    """
    end = time.monotonic() + FAILOVER
    waiting = False
    with connect(url) as client:
        while True:
            state.maybe_shutdown()
            try:
                facts = server_facts(client)
                if not facts.replica or time.monotonic() >= end:
                    break
                why = "it is a replica, as after a failover"
            except ResponseError as error:
                log.warning("redis_not_checked", setting=setting, error=str(error), action="Allow the command INFO.")
                return True
            except RedisError as error:
                why = str(error)
            if not waiting:
                log.warning("worker_waits_for_redis", setting=setting, error=why)
            waiting = True
            time.sleep(PAUSE)
    fit = True
    for problem in server_problems(facts, holds_jobs=setting == "FINETUNE_REDIS_URL"):
        say = log.error if problem.unfit else log.warning
        event = "redis_unfit" if problem.unfit else "redis_risky"
        say(event, setting=setting, problem=problem.message, action=problem.action)
        fit = fit and not problem.unfit
    return fit

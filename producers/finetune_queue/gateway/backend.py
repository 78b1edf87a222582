"""What the routes work with: the SDK and the store's readers, built once for a process."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from finetune_queue.gateway.clients import Clients
from finetune_queue.gateway.gauges import Queue
from finetune_queue.gateway.hints import Hints
from finetune_queue.gateway.hub import Hub
from finetune_queue.gateway.looks import Looks
from finetune_queue.gateway.metrics import Metrics
from finetune_queue.load import Loads
from finetune_queue.messaging import Messenger, producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import (
    Accounts,
    Counters,
    Deadlines,
    Feed,
    JobStore,
    Overview,
    ServerFacts,
    SinkLines,
    SweepClock,
    Workers,
    connect,
    refuses_writes,
    server_facts,
)

QUICK = 2.0
"""Seconds that Redis has to answer probes and metrics: an orchestrator gives up early, and Prometheus waits 10 s for
all of the numbers together."""

MAX_UPLOADS = 4
"""Uploads at once: each may need 100 MB of this machine's temporary folder."""


@dataclass(frozen=True)
class Backend:
    """Everything that the routes use. ``hub``, ``hints`` and ``uploads`` belong to the event loop; the rest is safe in
    threads."""

    settings: Settings
    queue: FineTuneQueue
    jobs: JobStore
    feed: Feed
    facts: Callable[[], ServerFacts]
    refusal: Callable[[], str]
    clients: Clients
    hub: Hub
    hints: Hints
    looks: Looks
    loads: Loads
    metrics: Metrics
    opened: ExitStack
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_UPLOADS))

    @classmethod
    def build(cls, settings: Settings) -> Self:
        """Build everything from the settings. Connects to nothing yet."""
        opened = ExitStack()
        client = opened.enter_context(connect(settings.finetune_redis_url))
        quick = opened.enter_context(connect(settings.finetune_redis_url, connect_timeout=QUICK, read_timeout=QUICK))
        facts = partial(server_facts, quick)
        jobs = JobStore(client)
        accounts, overview, feed, sinks = Accounts(client), Overview(client), Feed(client), SinkLines(client)
        messenger = Messenger(producer_app(settings))  # imports Celery here, not during the first submit
        return cls(
            settings=settings,
            queue=opened.enter_context(FineTuneQueue(settings, messenger=messenger)),
            jobs=jobs,
            feed=feed,
            facts=facts,
            refusal=partial(refuses_writes, quick),
            clients=Clients(
                settings.finetune_gateway_tokens,
                settings.finetune_gateway_rate_limit,
                settings.finetune_gateway_readers,
            ),
            hub=Hub(feed),
            hints=Hints(SweepClock(client).hint),
            looks=Looks(jobs, accounts, Workers(client), overview, sinks, messenger=messenger),
            loads=Loads(jobs, Deadlines(client), overview, messenger),
            metrics=Metrics(
                Queue(
                    overview=Overview(quick),
                    accounts=Accounts(quick),
                    messenger=messenger,
                    sinks=SinkLines(quick),
                    workers=Workers(quick),
                    counters=Counters(quick),
                    server=facts,
                )
            ),
            opened=opened,
        )

    async def close(self) -> None:
        """End what runs and close every connection to Redis."""
        await self.hints.close()
        self.opened.close()

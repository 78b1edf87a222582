"""What submitting costs a producer: many requests at once, one after the other, and bare messages of Celery's."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import redis
from rich.console import Console

from finetune_bench import report
from finetune_queue import FineTuneQueue, Settings
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, RUN, producer_app

ROUNDS = 3
"""How often each way is timed, one after the other, so that what else the machine does meets all of them."""

QUICK, FULL = 500, 10_000
"""How many requests."""

BARE = "Celery's send_task, no job"


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Any]:
    """Time every way of submitting the same number of requests, print the rates and return them."""
    count = QUICK if asked.quick else FULL
    with ValkeyServer(folder / "valkey") as valkey, redis.Redis.from_url(valkey.url, socket_timeout=60) as client:
        settings = Settings(finetune_redis_url=valkey.url, finetune_secrets_dir=folder)
        with FineTuneQueue(settings) as queue:
            ways = _ways(queue, settings)
            for submit in ways.values():
                submit(10)  # what is made at the first use is made
            times: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name, submit in ways.items():
                    console.print(f"submits: round {number + 1}, {name}", style="dim")
                    client.flushall()
                    began = time.perf_counter()
                    submit(count)
                    times[name].append(time.perf_counter() - began)
    rows = [
        {
            "way": name,
            "requests": count,
            "per_second": round(count / median(each)),
            "of_bare_messages": round(median(bare / own for bare, own in zip(times[BARE], each, strict=True)), 2),
            "fastest_s": round(min(each), 2),
            "slowest_s": round(max(each), 2),
        }
        for name, each in times.items()
    ]
    report.print_rows("submits", rows, Console())
    return {"submits": rows}


def _ways(queue: FineTuneQueue, settings: Settings) -> Mapping[str, Callable[[int], None]]:
    app = producer_app(settings)

    def bare(count: int) -> None:
        for request in _requests(count):
            app.send_task(RUN, args=[request], queue=QUEUE)

    def one_by_one(count: int) -> None:
        for request in _requests(count):
            queue.submit(request)

    def many(count: int) -> None:
        for submission in queue.submit_many(_requests(count), batch="bench"):
            if not submission.new:
                message = f"request {submission.index} became no new job: {submission.error}"
                raise RuntimeError(message)

    return {BARE: bare, "submit": one_by_one, "submit_many": many}


def _requests(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {
            "name": f"face-{number}",
            "instance_prompt": "photo of 1MAN",
            "trigger_word": "1MAN",
            "dataset": f"https://example.com/faces/{number}.zip",
            "labels": {"team": "bench"},
        }

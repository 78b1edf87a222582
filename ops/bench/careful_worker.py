"""The worker that a careful engineer would write in a day: one token bucket for all, and polls that fit the budget.

`celery -A careful_worker worker`, once for the queue `api` and once for the queue `files`.

- The bucket lives in Redis, so all workers share it. What may come at once and what is filled up in one window
  together are the limit, so that no window sees more.
- A task takes its token before it calls, and waits for it: tokens come in the order in which they were asked for.
- All trainings are counted, and each is looked at so often that the looks take half of the budget.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery, Task
from plain_api import PlainApi, TooManyRequestsError

CALLS = int(os.environ["BENCH_CALLS"])
WINDOW = float(os.environ["BENCH_WINDOW"])
POLL_EVERY = float(os.environ["BENCH_POLL_EVERY"])
"""Seconds between two looks at a job, at least."""

POLL_SHARE = 0.5
"""How much of the budget the looks may take."""

BURST = max(1, round(CALLS * 0.08))
TRAINING = "bench:training"
"""Set: the trainings that run."""

# The bucket as one number: when the last of the granted calls may start (GCRA).
TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local gap, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local start = math.max(last + gap, now - gap * (burst - 1))
redis.call('SET', KEYS[1], string.format('%.6f', start))
return tostring(start - now)
"""

app = Celery("careful_worker", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    task_default_queue="api",
    task_routes={"upload": {"queue": "files"}, "download": {"queue": "files"}},
)
store = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"], decode_responses=True, socket_timeout=10)
take = store.register_script(TAKE)
api = PlainApi(os.environ["SEGMIND_BASE_URL"], os.environ["SEGMIND_API_KEY"])
dataset = Path(os.environ["BENCH_DATASET"])
weights = Path(os.environ["BENCH_WEIGHTS"])


def wait_for_token() -> None:
    """Take a token and sleep until it is good."""
    gap = WINDOW / (CALLS - BURST)
    time.sleep(max(0.0, float(take(keys=["bench:bucket"], args=[gap, BURST]))))


def spread(seconds: float) -> float:
    """Return about as many seconds, so that not all come back at once."""
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311 - spreads load, keeps no secret


def next_look() -> float:
    """Return the seconds until a job is looked at (again)."""
    running = int(store.scard(TRAINING))
    fitted = running * WINDOW / CALLS / POLL_SHARE
    return spread(max(POLL_EVERY, fitted))


@app.task(name="presign", bind=True, max_retries=None)
def presign(self: "Task[Any, Any]", name: str) -> dict[str, str]:
    """Ask for an upload URL."""
    wait_for_token()
    try:
        return api.presign(name)
    except TooManyRequestsError as error:
        raise self.retry(countdown=spread(error.retry_after)) from None


@app.task(name="upload", bind=True, max_retries=5)
def upload(self: "Task[Any, Any]", upload_to: dict[str, str]) -> str:
    """Put the dataset there."""
    try:
        api.upload(upload_to["presigned_url"], dataset)
    except OSError as error:
        raise self.retry(exc=error, countdown=2**self.request.retries) from error
    return upload_to["s3_url"]


@app.task(name="submit", bind=True, max_retries=None)
def submit(self: "Task[Any, Any]", dataset_url: str, name: str) -> str:
    """Start the training, and have it looked at."""
    wait_for_token()
    try:
        finetune_id = api.submit(name, dataset_url)
    except TooManyRequestsError as error:
        raise self.retry(countdown=spread(error.retry_after)) from None
    store.sadd(TRAINING, finetune_id)
    return finetune_id


@app.task(name="poll", bind=True, max_retries=None)
def poll(self: "Task[Any, Any]", finetune_id: str) -> str:
    """Look at the job until its weights are there; the first look comes after a full interval."""
    if self.request.retries == 0:
        raise self.retry(countdown=next_look())
    wait_for_token()
    try:
        found = api.details(finetune_id)
    except TooManyRequestsError as error:
        raise self.retry(countdown=spread(error.retry_after)) from None
    if not found["cloud_storage_url"]:
        raise self.retry(countdown=next_look())
    store.srem(TRAINING, finetune_id)
    return str(found["cloud_storage_url"])


@app.task(name="download", bind=True, max_retries=5)
def download(self: "Task[Any, Any]", url: str, name: str) -> None:
    """Fetch the weights."""
    try:
        api.download(url, weights / f"{name}.safetensors")
    except OSError as error:
        raise self.retry(exc=error, countdown=2**self.request.retries) from error

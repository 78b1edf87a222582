"""The worker that a tutorial would write: a chain of Celery tasks that polls each job by `retry(countdown)`.

`celery -A tutorial_worker worker`. With BENCH_RATE_LIMIT set (calls a second for the whole account) it also uses
Celery's own `rate_limit`: a third of it for each of the three tasks that call the API, since that limit is one of
each task, and of each worker process.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task
from plain_api import PlainApi, TooManyRequestsError

POLL_EVERY = float(os.environ["BENCH_POLL_EVERY"])
"""Seconds between two looks at a job."""

RATE = os.environ.get("BENCH_RATE_LIMIT")
LIMIT = f"{float(RATE) / 3:.3f}/s" if RATE else None

app = Celery("tutorial_worker", broker=os.environ["BENCH_REDIS_URL"])
app.conf.task_ignore_result = True
api = PlainApi(os.environ["SEGMIND_BASE_URL"], os.environ["SEGMIND_API_KEY"])
dataset = Path(os.environ["BENCH_DATASET"])
weights = Path(os.environ["BENCH_WEIGHTS"])


@app.task(name="presign", bind=True, max_retries=None, rate_limit=LIMIT)
def presign(self: "Task[Any, Any]", name: str) -> dict[str, str]:
    """Ask for an upload URL."""
    try:
        return api.presign(name)
    except TooManyRequestsError as error:
        raise self.retry(countdown=error.retry_after) from None


@app.task(name="upload")
def upload(upload_to: dict[str, str]) -> str:
    """Put the dataset there."""
    api.upload(upload_to["presigned_url"], dataset)
    return upload_to["s3_url"]


@app.task(name="submit", bind=True, max_retries=None, rate_limit=LIMIT)
def submit(self: "Task[Any, Any]", dataset_url: str, name: str) -> str:
    """Start the training."""
    try:
        return api.submit(name, dataset_url)
    except TooManyRequestsError as error:
        raise self.retry(countdown=error.retry_after) from None


@app.task(name="poll", bind=True, max_retries=None, rate_limit=LIMIT)
def poll(self: "Task[Any, Any]", finetune_id: str) -> str:
    """Look at the job until its weights are there."""
    try:
        found = api.details(finetune_id)
    except TooManyRequestsError as error:
        raise self.retry(countdown=error.retry_after) from None
    if not found["cloud_storage_url"]:
        raise self.retry(countdown=POLL_EVERY)
    return str(found["cloud_storage_url"])


@app.task(name="download")
def download(url: str, name: str) -> None:
    """Fetch the weights."""
    api.download(url, weights / f"{name}.safetensors")

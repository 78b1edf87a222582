"""A server that is reached by a socket file: the jobs and Celery's messages both go through it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from finetune_queue import FineTuneQueue
from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import QUEUE
from finetune_queue.store.keys import BROKER_PREFIX
from support.samples import sample
from support.socket_server import socket_server


@pytest.fixture
def socket_file(tmp_path: Path) -> Iterator[Path]:
    with socket_server(tmp_path) as path:
        yield path


def test_a_job_runs_over_a_socket_file(socket_file: Path, tmp_path: Path, images: Path) -> None:
    settings = {"FINETUNE_REDIS_URL": f"unix://{socket_file}?db=2", "FINETUNE_POLL_MIN_INTERVAL": "0.2"}
    sandbox = {"SANDBOX_TRAINING_SECONDS": "0.2", "SANDBOX_WEIGHTS_BYTES": "262144"}
    with (
        LocalStack(tmp_path / "stack", rate_limit="50/1", settings=settings, sandbox=sandbox) as stack,
        FineTuneQueue(stack.settings) as queue,
    ):
        job = queue.submit(sample(dataset=str(images))).wait(30)
        assert job.state is JobState.SUCCEEDED, job.record.error
        with redis.Redis.from_url(settings["FINETUNE_REDIS_URL"]) as client:
            assert client.exists(f"{BROKER_PREFIX}_kombu.binding.{QUEUE}")

"""A server that is reached by a socket file: the jobs and Celery's messages both go through it."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from finetune_queue import FineTuneQueue
from finetune_queue.contract import JobState
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import find_server
from finetune_queue.messaging import QUEUE
from finetune_queue.store.keys import BROKER_PREFIX
from support.samples import sample


@pytest.fixture
def socket_file(tmp_path: Path) -> Iterator[Path]:
    """The socket of a server without a port. A short path: that of a socket may have some hundred characters only."""
    with TemporaryDirectory(prefix="valkey-") as folder:
        path = Path(folder, "redis.sock")
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
        server = Child("Valkey", [str(find_server()), *options], env={}, cwd=tmp_path, log=tmp_path / "socket.log")
        server.start()
        try:
            server.wait_until(path.is_socket, timeout=15)
            yield path
        finally:
            server.stop()


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

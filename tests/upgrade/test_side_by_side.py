"""Two versions of the worker on one Redis while jobs go through: an upgrade, and the way back."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest
import redis

from finetune_queue.contract import JobState
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import keys
from segmind_sandbox.testing import SandboxControl
from support.images import make_dataset_folder
from support.samples import sample
from support.until import until

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
JOBS = 8
SECONDS = 60

NEWS = [
    ("finetune_queue/__init__.py", '__version__ = "0.1.0"', '__version__ = "0.2.0"'),
    # a reason to wait, which some of its jobs have while they train
    ("finetune_queue/contract/job.py", 'PAUSED = "paused"', 'GRADER = "grader"\n    PAUSED = "paused"'),
    (
        "finetune_worker/stages/conclude.py",
        'fields["waiting_for"] = WaitReason.PROVIDER',
        'fields["waiting_for"] = WaitReason.GRADER if "grade" in job.request.labels else WaitReason.PROVIDER',
    ),
    # a field of the record, and a kind of event
    (
        "finetune_worker/stages/claim.py",
        "Change(delay=lease), owner=owner",
        'Change(delay=lease), owner=owner, grade="A"',
    ),
    ("finetune_queue/contract/kinds.py", 'REJECTED = "rejected"', 'GRADED = "graded"\n    REJECTED = "rejected"'),
    ("finetune_worker/stages/upload.py", "claim.write(dataset_report", 'claim.write(event="graded", dataset_report'),
]
"""What the newer version writes and this one does not know: file, text, what stands there instead."""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newer version's code: this one's, with the news."""
    folder = tmp_path_factory.mktemp("newer")
    shutil.copytree(ROOT / "producers/finetune_queue", folder / "finetune_queue")
    shutil.copytree(ROOT / "worker/finetune_worker", folder / "finetune_worker")
    for name, here, there in NEWS:
        text = (folder / name).read_text()
        assert text.count(here) == 1, name
        (folder / name).write_text(text.replace(here, there))
    return folder


def start_newer(stack: LocalStack, newer: Path, name: str) -> Child:
    options = ["-P", "threads", "-c", "4", "-n", f"{name}@%h", "--loglevel", "INFO"]
    command = ["celery", "--quiet", "-A", "finetune_worker", "worker", *options]
    worker = stack._launch(name, command, {**stack.worker_env, "PYTHONPATH": str(newer)})
    stack._await_worker(worker)
    return worker


def test_an_upgrade_under_load_and_the_way_back(newer: Path, tmp_path: Path) -> None:
    images = make_dataset_folder(tmp_path / "images", count=4, size=(32, 32))
    stack = LocalStack(
        tmp_path / "stack",
        threads=4,
        rate_limit="50/1",
        sandbox={"SANDBOX_TRAINING_SECONDS": "1", "SANDBOX_WEIGHTS_BYTES": "65536"},
        settings={
            "FINETUNE_POLL_MIN_INTERVAL": "0.2",
            "FINETUNE_HANDOVER": "1",
            "FINETUNE_LEASE": "3",  # after which what the older one left alone comes to the newer one
            "FINETUNE_LOG_FORMAT": "json",
            "FINETUNE_SINKS": "list://told",
        },
    )
    with stack, FineTuneQueue(stack.settings) as queue, redis.Redis.from_url(stack.valkey.url) as client:
        submitted = 0

        def submit(**request: object) -> None:
            nonlocal submitted
            for _ in range(JOBS):
                queue.submit(sample(name=f"job-{submitted}", dataset=str(images), **request))
                submitted += 1

        def all_succeeded() -> bool:
            return queue.counts()[JobState.SUCCEEDED] == submitted

        [old] = stack.workers
        submit()
        new = start_newer(stack, newer, "newer")

        def one_was_left_alone() -> bool:
            if "job_left_alone" in old.log.read_text():
                return True
            submit(labels={"grade": "A"})  # chance may bring none that the new one has had to the old one
            return False

        until(one_was_left_alone, seconds=SECONDS, pause=3)
        old.stop(grace=10)
        until(all_succeeded, seconds=SECONDS)

        submit()
        again = stack.start_worker("again")
        submit()
        new.stop(grace=10)
        until(all_succeeded, seconds=SECONDS)

        with closing(SandboxControl(stack.sandbox_url)) as control:
            assert control.report()["submits"]["by_name"] == {f"job-{number}": 1 for number in range(submitted)}
        written = [client.hexists(keys.job(job.id), "grade") for job in queue.list(limit=submitted)]
        assert sum(written) >= JOBS  # also those that the old one ended
        events = [event for job in queue.list(limit=submitted) for event in job.events()]
        assert sum(event.kind == "graded" for event in events) >= JOBS
        until(
            lambda: client.llen("told") >= len([event for event in events if event.kind != "progress"]), seconds=SECONDS
        )
        said = "".join(worker.log.read_text() for worker in (old, new, again))
        assert [line for line in said.splitlines() if '"error"' in line or "crashed" in line or "_failed" in line] == []

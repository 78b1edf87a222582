"""A job whose own API call never goes well, while those of its account's other jobs do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_queue.contract import JobRecord, JobState, WaitReason
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import Budget, Change, keys
from finetune_queue.store.clock import server_ms
from finetune_worker.stages.access import change_access
from finetune_worker.stages.calls import OTHERS_TRY
from support.bench import Bench
from support.images import make_dataset_zip


def uploading(bench: Bench, folder: Path) -> tuple[JobRecord, str]:
    """Return a job that asks for its upload URL, and the call's name."""
    job = bench.job(dataset=make_dataset_zip(folder / "d.zip").as_uri())
    return bench.container.jobs.transition(job, Change(delay=60), to=JobState.UPLOADING), "presign"


def training(bench: Bench, folder: Path) -> tuple[JobRecord, str]:
    """Return a job that asks for its training's details, and the call's name."""
    job = bench.submitting()
    bench.run(job)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True)
    return job, "details"


def end_pause(bench: Bench) -> None:
    """End the account's pause as another job's call does that goes well."""
    bench.container.jobs._redis.hdel(keys.account("default"), "paused_until", "probing", "probe_until", "failures")


def due_in(bench: Bench, job: JobRecord) -> float:
    return (bench.due_ms(job) - server_ms(bench.container.jobs._redis)) / 1000


@pytest.mark.parametrize("asking", [uploading, training])
def test_it_calls_ever_more_rarely_and_others_go_first(
    asking: Callable[[Bench, Path], tuple[JobRecord, str]], bench: Bench, tmp_path: Path
) -> None:
    bench.change_settings(finetune_backoff_base=4.0, finetune_backoff_max=40.0)
    job, op = asking(bench, tmp_path)
    bench.sandbox.control.add_fault(op=op, kind="http_error", status=503, count=3)
    waits = []
    for failures in (1, 2, 3):
        result = bench.run(job)
        assert result.sentence.startswith(f"try {failures} failed: Segmind could not answer now (status 503)")
        waits.append(due_in(bench, job))
        assert bench.container.jobs._redis.zcard(keys.room("default")) == 0, "it would be first when the pause ends"
        found = bench.read(job)
        assert (found.waiting_for, found.attempts, found.outages) == (WaitReason.BACKOFF, 0, failures)
        end_pause(bench)
    assert waits[0] < waits[1] < waits[2] <= 16

    bench.run(job)
    assert (bench.read(job).outages, bench.read(job).error) == (0, None)


def test_it_lets_others_go_first_after_a_pause_that_is_longer_than_its_own(bench: Bench, tmp_path: Path) -> None:
    job, op = uploading(bench, tmp_path)
    longer = bench.container.settings.model_copy(update={"finetune_backoff_base": 30.0, "finetune_backoff_max": 30.0})
    bench.container.budget = Budget.of_calls(bench.container.jobs._redis, longer)
    bench.sandbox.control.add_fault(op=op, kind="http_error", status=503)
    bench.run(job)
    pause = bench.container.accounts.status("default").paused_for
    assert due_in(bench, job) > pause + OTHERS_TRY / 2 > 25


def test_a_change_of_access_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_worker.stages.access.CALL_MARGIN", 0.0)
    bench.change_settings(finetune_backoff_base=8.0, finetune_backoff_max=80.0)
    job = bench.submitting()
    bench.run(job)
    bench.container.jobs.transition(bench.read(job), Change(), to=JobState.CANCELLED, waiting_for=None)
    bench.sandbox.control.add_fault(op="access", kind="http_error", status=503, count=2)
    waits = []
    with FineTuneQueue(bench.container.settings) as queue:
        queue.set_public(job.id, public=True)
        for _ in range(2):
            change_access(bench.container, job.id, "task-1")
            waits.append(due_in(bench, job))
            bench.container.jobs._redis.hset(keys.job(job.id), "access_settles_ms", "1")
            end_pause(bench)
        assert 2 < waits[0] < waits[1]
        change_access(bench.container, job.id, "task-1")
    assert (bench.read(job).wants_access, bench.read(job).outages) == (False, 0)

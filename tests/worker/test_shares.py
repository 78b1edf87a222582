"""Several accounts: each has its own budget, caps and share of the workers' transfers."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState, WaitReason, new_job_id
from finetune_queue.messaging import TRANSFER_QUEUE, producer_app
from finetune_queue.store import CallClass, Change, LiveWorker, Slot, keys, room_score, transfers_of
from finetune_worker import dispatcher as dispatcher_module
from finetune_worker.container import Container
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.intake import accept
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.runner import run_stage
from finetune_worker.stages.shares import transfer_share
from finetune_worker.tasks import STAGES
from segmind_sandbox.testing import LiveSandbox
from support.bench import make_settings
from support.images import image_bytes, make_zip
from support.samples import sample_request
from support.until import until


@pytest.fixture
def container(sandbox: LiveSandbox, redis_url: str, tmp_path: Path) -> Iterator[Container]:
    account = {"api_key": sandbox.api_key, "rate_limit": "50/60"}
    several = {"big": {**account, "max_transfers": 1}, "small": {**account, "api_key": "other-key", "max_transfers": 1}}
    settings = make_settings(
        sandbox, redis_url, tmp_path, segmind_api_key=None, segmind_accounts=several, segmind_rate_limit="5/60"
    )
    built = Container.build(settings, producer_app(settings))
    built.presence.announce()
    yield built
    built.close()


def accepted(container: Container, account: str, dataset: Path) -> JobRecord:
    request = sample_request(account=account, dataset=f"file://{dataset}")
    job, _ = container.jobs.register(new_job_id(), request, delay=60)
    accept(container, [job.id], {}, message_id=new_job_id())
    return container.jobs.get(job.id)


def queued(container: Container) -> int:
    """Return how many stage messages wait in the broker."""
    return container.messenger.queued(TRANSFER_QUEUE)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "d.zip", {"1.jpg": image_bytes(1, (600, 600))})


def test_a_backlog_of_one_account_puts_no_more_messages_in_the_queue_than_its_share(
    container: Container, dataset: Path
) -> None:
    backlog = [accepted(container, "big", dataset) for _ in range(5)]
    assert queued(container) == 0
    dispatcher = Dispatcher(container)
    dispatcher.step()
    assert queued(container) == 1

    late = accepted(container, "small", dataset)
    dispatcher.step()

    assert queued(container) == 2
    assert container.accounts.place(late) is None
    assert {job.waiting_for for job in backlog} == {WaitReason.TRANSFER}


def test_the_next_transfer_starts_when_one_ends(container: Container, dataset: Path) -> None:
    first, second = accepted(container, "big", dataset), accepted(container, "big", dataset)
    dispatcher = Dispatcher(container)
    dispatcher.step()
    run_stage(container, first.stage, STAGES[first.stage], first.id, "task-1")
    assert container.jobs.get(first.id).state is JobState.SUBMITTING

    def started() -> bool:
        dispatcher.step()
        return queued(container) == 2

    until(started, seconds=30)
    result = run_stage(container, second.stage, STAGES[second.stage], second.id, "task-2")
    assert result.sentence.startswith("uploaded")


def test_a_place_is_kept_while_nothing_is_heard_of_the_transfer(container: Container, dataset: Path) -> None:
    job = container.jobs.get(accepted(container, "big", dataset).id)
    claim = Claim(container.jobs, job, "task-1", lease=30.0, out_of_time=lambda: False)
    redis: Any = container.jobs._redis

    def free_in() -> float:
        [(_, at_ms)] = redis.zrange(keys.slots(transfers_of("big")), 0, 0, withscores=True)
        return float(at_ms) / 1000 - time.time()

    claim.hold(100)
    with transfer_share(container, claim, CallClass.PREPARE):
        assert free_in() == pytest.approx(30, abs=5)
        claim.hold(60)  # for which the job is held already
        assert free_in() == pytest.approx(60, abs=5)
        claim.hold(150)
        assert free_in() > 140


def test_a_link_to_private_weights_is_asked_for_by_a_download_that_has_a_place(
    container: Container, sandbox: LiveSandbox
) -> None:
    job, _ = container.jobs.register(new_job_id(), sample_request(account="big"), delay=60)
    for to in (JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING):
        job = container.jobs.transition(
            job, Change(delay=60), to=to, weights_url="https://example.com/w", weights_private=True
        )
    other = container.transfers.take(transfers_of("big"), "other", 0.0)
    assert isinstance(other, Slot)
    before = sandbox.control.report()["calls"]

    result = run_stage(container, job.stage, STAGES[job.stage], job.id, "task-1")

    assert result.sentence == "parked: the account's share of transfers is in use"
    assert sandbox.control.report()["calls"] == before


def test_a_transfer_without_a_place_parks_and_keeps_its_upload_url(container: Container, dataset: Path) -> None:
    job = accepted(container, "big", dataset)
    transfers = transfers_of("big")
    other = container.transfers.take(transfers, "other", 0.0)
    assert isinstance(other, Slot)

    result = run_stage(container, job.stage, STAGES[job.stage], job.id, "task-1")

    assert result.sentence == "parked: the account's share of transfers is in use"
    assert container.jobs.get(job.id).waiting_for is WaitReason.TRANSFER
    container.transfers.end(other)
    dispatcher = Dispatcher(container)

    def started() -> bool:
        dispatcher.step()
        return queued(container) == 1

    until(started, seconds=30)


def test_a_share_that_is_lifted_lets_all_go_who_waited_for_it(
    container: Container, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 2)
    old_worker_s = accepted(container, "big", dataset)
    dispatcher = Dispatcher(container)
    dispatcher.step()
    assert [accepted(container, "big", dataset) for _ in range(3)]
    dispatcher.step()
    assert queued(container) == 1

    limits = container.accounts.status("big").limits
    container.accounts.configure("big", replace(limits, max_transfers=None))
    assert dispatcher.step() == 0.0  # there are more than it takes at once
    dispatcher.step()
    assert queued(container) == 4

    result = run_stage(container, old_worker_s.stage, STAGES[old_worker_s.stage], old_worker_s.id, "task-1")
    assert result.sentence.startswith("uploaded")


def test_an_account_that_no_worker_has_fails_its_job_with_the_names_that_are_known(
    container: Container, tmp_path: Path
) -> None:
    job = accepted(container, "nobody", tmp_path / "missing.zip")  # which is not even looked for
    result = run_stage(container, job.stage, STAGES[job.stage], job.id, "task-1")
    job = container.jobs.get(job.id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "account_unknown"
    assert "known: big, small" in result.sentence


def test_a_job_whose_account_this_worker_does_not_have_is_left_to_one_that_has_it(
    container: Container, dataset: Path
) -> None:
    job = accepted(container, "new", dataset)
    container.accounts.configure("new", container.accounts.status("big").limits)
    other = LiveWorker("host-b:1", "0.1.0", ("big", "new"))
    container.workers.seen(other)

    result = run_stage(container, job.stage, STAGES[job.stage], job.id, "task-1")
    job = container.jobs.get(job.id)
    assert (job.state, job.waiting_for, job.attempts) == (JobState.UPLOADING, WaitReason.BACKOFF, 0)
    assert result.sentence.endswith("A worker that has it takes over")

    # Nor after an outage of Redis, from which the other one has not come back yet.
    container.workers._redis.zadd(keys.workers(), {other.member: 1})
    container.jobs.transition(container.jobs.get(job.id), Change(delay=60), waiting_for=None)
    assert run_stage(container, job.stage, STAGES[job.stage], job.id, "task-2").sentence.startswith("parked")

    container.workers.left(other)
    run_stage(container, job.stage, STAGES[job.stage], job.id, "task-3")
    assert container.jobs.get(job.id).state is JobState.FAILED


def test_a_stopped_account_submits_nothing_and_says_so(container: Container, dataset: Path) -> None:
    job = accepted(container, "big", dataset)
    run_stage(container, job.stage, STAGES[job.stage], job.id, "task-1")
    container.accounts.stop_submits("big", stopped=True)

    job = container.jobs.get(job.id)
    result = run_stage(container, job.stage, STAGES[job.stage], job.id, "task-2")
    assert result.sentence == "parked: the account's submits are stopped"
    assert container.budget.reserve("big", 10)[0] == []

    container.accounts.stop_submits("big", stopped=False)
    assert container.budget.reserve("big", 10)[0] == [job.id]
    assert room_score(CallClass.SUBMIT, job) > 0

"""A job that also waits until Segmind has deployed its model: what looks at Segmind then mean for it."""

from dataclasses import replace
from typing import Any, cast

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.storage import UnavailableError
from finetune_queue.store import Change
from finetune_worker.segmind.models import FinetuneItem
from finetune_worker.stages.observe import observe
from support.bench import Bench, sweep
from support.driver import Message, Post
from support.until import until


@pytest.fixture
def deploying(bench: Bench) -> JobRecord:
    """A job whose weights are stored and whose model is not deployed yet."""
    job = bench.downloading(wait_for="available")
    bench.run(job)
    assert bench.read(job).state is JobState.DEPLOYING
    return bench.read(job)


def test_it_waits_for_segmind_without_another_message(bench: Bench, deploying: JobRecord) -> None:
    assert deploying.waiting_for is WaitReason.PROVIDER
    seconds = (bench.due_ms(deploying) - deploying.updated_ms) / 1000
    assert seconds == pytest.approx(bench.container.settings.finetune_unseen_limit, abs=5)


def by_the_sweep(bench: Bench, job: JobRecord) -> None:
    sweep(bench.container, "default")


def by_the_poll(bench: Bench, job: JobRecord) -> None:
    bench.let_stay(job, bench.container.settings.finetune_unseen_limit)
    bench.run(job)


@pytest.mark.parametrize("look", [by_the_sweep, by_the_poll])
def test_a_training_that_fails_before_it_is_deployed_ends_its_job_at_once(
    bench: Bench, deploying: JobRecord, look: Any
) -> None:
    bench.sandbox.control.change_training(bench.finetune_id(deploying), fail="no GPU left")

    look(bench, deploying)

    job, error = bench.read(deploying), bench.error(deploying)
    assert (job.state, job.failed_stage, error.code, job.tracked) == (
        JobState.FAILED,
        Stage.POLL,
        "deploy_failed",
        False,
    )
    assert job.weights is not None
    assert "no GPU left" in error.message
    assert job.weights.url in error.message
    assert "at no cost" in error.action


@pytest.mark.parametrize("look", [by_the_sweep, by_the_poll])
@pytest.mark.parametrize("word", ["INFERENCE_FAILED", "INFERENCE_QUEUED"])
def test_a_deployment_that_fails_ends_its_job_by_a_message_alone(bench: Bench, word: str, look: Any) -> None:
    bench.sandbox.control.add_fault(op="training", kind="fail_deploy", word=word, message="no GPU left")
    bench.sandbox.control.change_settings(deploy_seconds=0)
    job = bench.submitting(wait_for="available")
    bench.run(job)
    until(lambda: bench.sandbox.control.trainings()[0]["status"] == word, seconds=30)
    sweep(bench.container, "default")
    bench.run(job)
    assert (bench.read(job).state, bench.read(job).weights is not None) == (JobState.DEPLOYING, True)

    look(bench, job)

    assert (bench.read(job).state, bench.read(job).failed_stage) == (JobState.FAILED, Stage.POLL)
    assert bench.error(job).code == "deploy_failed"
    assert f"ended as {word}: no GPU left" in bench.error(job).message


def test_the_slug_is_known_where_only_the_look_at_the_deployed_model_had_it(bench: Bench, deploying: JobRecord) -> None:
    job = bench.container.jobs.transition(deploying, Change(delay=60), slug=None)
    bench.sandbox.control.change_training(bench.finetune_id(job), finish=True)
    sweep(bench.container, "default")
    assert bench.read(job).deployed
    assert bench.read(job).slug == bench.sandbox.control.trainings()[0]["slug"]


def test_a_message_beside_a_model_that_is_deployed_fails_nothing(deploying: JobRecord) -> None:
    item = {"finetune_id": deploying.finetune_id, "status": "AVAILABLE", "error_message": "a warning"}
    assert observe(deploying, FinetuneItem.model_validate(item)).fields["deployed"] is True


def test_the_time_that_its_training_took_is_not_taken_from_it(bench: Bench, deploying: JobRecord) -> None:
    limit = bench.container.settings.finetune_training_limit
    bench.container.jobs.transition(deploying, Change(delay=60), submitted_ms=int(deploying.updated_ms - limit * 1000))
    bench.run(deploying)
    assert bench.read(deploying).state is JobState.DEPLOYING


def test_one_that_is_never_deployed_fails_and_a_retry_waits_as_long_again(bench: Bench, deploying: JobRecord) -> None:
    bench.let_stay(deploying, bench.container.settings.finetune_training_limit)
    bench.run(deploying)
    assert "was not deployed after 6 h" in bench.error(deploying).message

    with FineTuneQueue(bench.container.settings) as queue:
        queue.retry(deploying.id)
    bench.run(deploying)
    assert bench.read(deploying).state is JobState.DEPLOYING


def test_a_retry_after_that_pays_nothing(bench: Bench, deploying: JobRecord) -> None:
    bench.sandbox.control.change_training(bench.finetune_id(deploying), fail="no GPU left")
    sweep(bench.container, "default")

    with FineTuneQueue(bench.container.settings) as queue:
        assert queue.retry(deploying.id).state is JobState.DEPLOYING
    sweep(bench.container, "default")

    assert bench.error(deploying).code == "deploy_failed"
    assert bench.submits() == 1


@pytest.mark.parametrize("look", [by_the_sweep, by_the_poll])
def test_a_deployed_job_goes_on_at_once_with_the_stage_that_is_next(
    bench: Bench, deploying: JobRecord, look: Any
) -> None:
    post = Post()
    bench.container = replace(bench.container, messenger=cast("Any", post))
    bench.sandbox.control.change_training(bench.finetune_id(deploying), finish=True)

    look(bench, deploying)

    assert post.messages == [Message(deploying.id, (Stage.PUBLISH,))]


def test_a_deployed_job_is_looked_at_no_more(
    bench: Bench, deploying: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sandbox.control.change_training(bench.finetune_id(deploying), finish=True)
    sweep(bench.container, "default")
    deployed = bench.read(deploying)
    assert (deployed.stage, deployed.deployed, deployed.tracked) == (Stage.PUBLISH, True, False)
    assert bench.container.accounts.status("default").in_flight == 0

    def away(*_: object) -> None:
        raise UnavailableError("The store is away.")

    monkeypatch.setattr(bench.container.artifacts, "put_bytes", away)
    bench.run(deploying)
    waiting = bench.read(deploying)

    assert sweep(bench.container, "default") == "no trainings to look at"
    assert bench.read(deploying) == waiting

"""The sweep and the poll stage: one call sees every training, and each moves as soon as it can."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from finetune_queue.contract import EventType, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.messaging import TRANSFER_QUEUE
from finetune_queue.resuming import resume_at
from finetune_queue.store import SWEEP, Change, keys
from finetune_worker.stages.sweep import sweep_if_due
from support.bench import Bench, make_settings, sweep
from support.until import until


def calls_of(bench: Bench, operation: str) -> int:
    return sum(bench.sandbox.control.report()["calls"].get(operation, {}).values())


def test_one_list_call_moves_every_finished_training(bench: Bench) -> None:
    jobs = bench.trained(5, list_carries_weights_url=True)

    sentence = sweep(bench.container, "default")

    assert sentence == "saw 5 of 5 trainings, 5 moved"
    assert calls_of(bench, "list") == 1
    assert calls_of(bench, "details") == 0
    assert {bench.read(job).state for job in jobs} == {JobState.DOWNLOADING}
    assert all(bench.read(job).weights_url for job in jobs)
    # Their messages are sent, and their deadlines are for the case that these are lost.
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 5
    assert bench.container.deadlines.due(10, 30.0)[0] == {}


def test_a_broker_out_of_reach_does_not_end_a_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = bench.trained(3, list_carries_weights_url=True)

    def out_of_reach(*_: Any, **__: Any) -> None:
        raise OperationalError

    monkeypatch.setattr(bench.container.messenger, "start", out_of_reach)
    assert sweep(bench.container, "default") == "saw 3 of 3 trainings, 3 moved"
    handover = bench.container.settings.finetune_handover * 1000
    for job in map(bench.read, jobs):
        assert (job.state, bench.due_ms(job)) == (JobState.DOWNLOADING, job.updated_ms + handover)


def test_what_moves_on_leaves_the_trouble_of_earlier_tries_behind(bench: Bench) -> None:
    [job] = bench.trained(1)
    trouble = JobError(code="weights_missing", stage="poll", message="No URL.", retryable=True)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), attempts=2, error=trouble)

    sweep(bench.container, "default")

    job = bench.read(job)
    assert (job.state, job.attempts, job.error) == (JobState.DOWNLOADING, 0, None)


def test_of_the_messages_that_piled_up_while_no_thread_was_free_one_makes_the_look(bench: Bench) -> None:
    bench.trained(2, training_seconds=600)
    for _ in range(3):
        bench.container.sweep_clock.sweep_now("default")
        assert bench.container.budget.reserve("default", 5)[0] == [SWEEP]

    sentences = [sweep_if_due(bench.container, "default") for _ in range(3)]

    assert sentences[0].startswith("saw 2 of 2")
    assert sentences[1:] == ["nothing to do: another message already swept the account"] * 2
    assert calls_of(bench, "list") == 1


def test_of_two_messages_that_threads_take_at_the_same_moment_one_makes_the_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read some thousand trainings takes seconds, in which another thread may come as far."""
    bench.trained(2, training_seconds=600)
    bench.container.sweep_clock.sweep_now("default")
    assert bench.container.budget.reserve("default", 5)[0] == [SWEEP]
    sentences: list[str] = []
    tracked = bench.container.jobs.tracked

    def read_by_both(account: str) -> Any:
        jobs = list(tracked(account))
        if not sentences:
            sentences.append("")
            sentences[0] = sweep_if_due(bench.container, account)
        return iter(jobs)

    monkeypatch.setattr(bench.container.jobs, "tracked", read_by_both)
    sentences.append(sweep_if_due(bench.container, "default"))

    assert sentences[0].startswith("saw 2 of 2")
    assert sentences[1] == "nothing to do: another message already swept the account"
    assert calls_of(bench, "list") == 1


def test_a_message_that_came_after_its_slot_lapsed_still_makes_the_look(bench: Bench) -> None:
    bench.trained(2, training_seconds=600)
    bench.container.sweep_clock.sweep_now("default")
    assert sweep_if_due(bench.container, "default").startswith("saw 2 of 2")


def test_a_worker_without_the_account_s_key_takes_no_slot_for_its_sweep(bench: Bench) -> None:
    bench.trained(1, training_seconds=600)
    used = bench.container.accounts.status("default").used
    elsewhere = make_settings(
        bench.sandbox,
        bench.container.settings.finetune_redis_url,
        Path("/nowhere"),
        segmind_api_key=None,
        segmind_accounts={"other": {"api_key": bench.sandbox.api_key}},
    )
    other = replace(bench.container, settings=elsewhere, _clients={})

    assert sweep(other, "default").startswith("no sweep: The account 'default' is not configured on this worker")
    assert bench.container.accounts.status("default").used == used


def test_a_sweep_does_not_put_off_the_lease_of_a_worker_that_holds_the_job(bench: Bench) -> None:
    jobs = bench.trained(2, training_seconds=600)
    sweep(bench.container, "default")
    held = bench.container.jobs.transition(bench.read(jobs[0]), Change(delay=30), owner="died")
    deadlines = bench.container.jobs._redis
    lease = deadlines.zscore(keys.deadlines(), held.id)

    sweep(bench.container, "default")

    assert bench.read(held) == held
    assert deadlines.zscore(keys.deadlines(), held.id) == lease


def test_while_only_a_submit_is_on_its_way_no_call_is_made(bench: Bench) -> None:
    job = bench.container.jobs.transition(bench.submitting(), Change(delay=30), owner="w", intent_ms=1)
    assert [each.id for each in bench.container.jobs.tracked("default")] == [job.id]

    assert sweep(bench.container, "default") == "no trainings to look at"

    assert "list" not in bench.sandbox.control.report()["calls"]


def test_more_trainings_than_a_page_all_move(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_worker.stages.sweep.PAGE", 2)
    monkeypatch.setattr("finetune_queue.store.jobs._PAGE", 2)
    jobs = bench.trained(5, list_carries_weights_url=True)
    assert sweep(bench.container, "default") == "saw 5 of 5 trainings, 5 moved"
    assert {bench.read(job).state for job in jobs} == {JobState.DOWNLOADING}


def test_a_job_that_went_on_while_the_list_was_on_its_way_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = bench.trained(2, list_carries_weights_url=True)
    store, read = bench.container.jobs, bench.container.jobs.tracked

    def tracked(account: str) -> list[JobRecord]:
        found = list(read(account))
        store.transition(bench.read(jobs[0]), Change(delay=60), attempts=1)
        return found

    monkeypatch.setattr(store, "tracked", tracked)
    assert sweep(bench.container, "default") == "saw 2 of 2 trainings, 1 moved"
    assert [bench.read(job).state for job in jobs] == [JobState.TRAINING, JobState.DOWNLOADING]


def test_a_list_without_urls_costs_one_details_call_for_each_job(bench: Bench) -> None:
    jobs = bench.trained(3, list_carries_weights_url=False)

    sweep(bench.container, "default")
    assert bench.container.accounts.status("default").waiting == 3
    sweep(bench.container, "default")
    holders, _ = bench.container.budget.reserve("default", 10)
    assert set(holders) - {"sweep"} == {job.id for job in jobs}
    for job in jobs:
        assert bench.run(job).proceed
        assert bench.read(job).state is JobState.DOWNLOADING
    assert calls_of(bench, "details") == 3


def test_a_single_training_is_looked_at_by_its_details(bench: Bench) -> None:
    [job] = bench.trained(1, list_carries_weights_url=False)
    sweep(bench.container, "default")
    assert bench.read(job).state is JobState.DOWNLOADING
    assert (calls_of(bench, "list"), calls_of(bench, "details")) == (0, 1)
    [training] = bench.sandbox.control.trainings()
    assert bench.read(job).slug == training["slug"]
    assert bench.container.jobs.events(job.id)[-1].data["slug"] == training["slug"]


def test_a_running_training_parks_its_job_and_tells_of_its_status(bench: Bench) -> None:
    [job] = bench.trained(1, training_seconds=5)
    result = bench.run(job)
    assert not result.proceed
    assert "waiting for Segmind to train" in result.sentence
    finetune_id = bench.finetune_id(job)
    bench.sandbox.control.change_training(finetune_id, status_word="WARMING_UP")
    until(lambda: bench.sandbox.control.trainings()[0]["status"] == "WARMING_UP", seconds=30)

    sweep(bench.container, "default")

    job = bench.read(job)
    assert (job.state, job.provider_status) == (JobState.TRAINING, "WARMING_UP")
    last = bench.container.jobs.events(job.id)[-1]
    assert (last.kind, last.data["provider_status"]) == (EventType.PROGRESS, "WARMING_UP")
    assert job.waiting_for is WaitReason.PROVIDER


def test_a_failed_training_fails_its_job_with_segmind_s_words(bench: Bench) -> None:
    [job] = bench.trained(1, training_seconds=600)
    bench.sandbox.control.change_training(bench.finetune_id(job), fail="no faces found")

    sweep(bench.container, "default")

    job = bench.read(job)
    assert job.state is JobState.FAILED
    assert "no faces found" in bench.error(job).message
    assert bench.error(job).code == "training_failed"
    assert not job.tracked
    assert bench.container.accounts.status("default").in_flight == 0


def test_segmind_s_words_are_kept_without_the_signed_link_in_them(bench: Bench) -> None:
    [job] = bench.trained(1, training_seconds=600)
    link = "https://b.example/d.zip?X-Amz-Signature=a1b2c3d4"
    bench.sandbox.control.change_training(bench.finetune_id(job), fail=f"cannot read {link}")

    sweep(bench.container, "default")

    assert bench.error(job).message.endswith("ended as FAILED: cannot read https://b.example/d.zip?...")
    assert "a1b2c3d4" not in "".join(event.model_dump_json() for event in bench.container.jobs.events(job.id))


def test_a_word_of_failure_in_the_list_is_believed_once_the_details_show_no_weights(bench: Bench) -> None:
    failed, _ = bench.trained(2, training_seconds=600)
    bench.sandbox.control.change_training(bench.finetune_id(failed), fail="no faces found")

    sweep(bench.container, "default")

    job = bench.read(failed)
    assert (job.state, job.wants_details, job.waiting_for) == (JobState.TRAINING, True, WaitReason.API_SLOT)
    bench.run(failed)
    job = bench.read(failed)
    assert (job.state, job.failed_stage, job.provider_status) == (JobState.FAILED, Stage.SUBMIT, "FAILED")
    assert (bench.error(failed).code, calls_of(bench, "details")) == ("training_failed", 1)


@pytest.mark.parametrize("url_in_list", [True, False])
@pytest.mark.parametrize("count", [1, 2], ids=["details", "list"])
@pytest.mark.parametrize("word", ["INFERENCE_FAILED", "DEPLOYMENT_FAILED", "FAILED"])
def test_weights_that_exist_are_fetched_though_the_deployment_failed(
    bench: Bench, word: str, count: int, *, url_in_list: bool
) -> None:
    bench.sandbox.control.add_fault(op="training", kind="fail_deploy", word=word, count=None)
    jobs = bench.trained(count, list_carries_weights_url=url_in_list, deploy_seconds=0)

    sweep(bench.container, "default")
    for job in jobs:
        if bench.read(job).wants_details:
            bench.run(job)

    assert {(bench.read(job).state, bench.read(job).provider_status) for job in jobs} == {(JobState.DOWNLOADING, word)}
    assert calls_of(bench, "details") == (0 if url_in_list and count > 1 else count)


def test_a_training_that_was_over_is_not_paid_for_again_when_it_is_said_to_have_failed(bench: Bench) -> None:
    job, _ = bench.trained(2, list_carries_weights_url=False)
    sweep(bench.container, "default")
    assert bench.read(job).provider_status == "TRAINING_COMPLETED"
    bench.sandbox.control.change_training(bench.finetune_id(job), fail="no GPU left")

    for _ in range(bench.container.settings.finetune_max_attempts):
        bench.run(job)

    assert (bench.read(job).state, bench.read(job).failed_stage) == (JobState.FAILED, Stage.POLL)
    assert bench.error(job).code == "weights_missing"
    assert "FAILED (no GPU left)" in bench.error(job).message
    assert "no cost" in bench.error(job).action
    to, fields = resume_at(bench.read(job))
    assert (to, fields["wants_details"]) == (JobState.TRAINING, True)  # a retry looks at the same one


def test_a_training_that_the_list_lacks_is_asked_for_alone(bench: Bench) -> None:
    first, second = bench.trained(2, training_seconds=600)
    for job in (first, second):
        bench.run(job)
    bench.sandbox.control.change_training(bench.finetune_id(first), hidden=True)
    sweep(bench.container, "default")

    bench.let_stay(first, bench.container.settings.finetune_unseen_limit)
    assert "waiting for Segmind to train" in bench.run(first).sentence
    assert calls_of(bench, "details") == 1


def test_a_training_that_segmind_does_not_find_for_a_moment_is_asked_for_again(bench: Bench) -> None:
    [job] = bench.trained(1)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True)
    bench.sandbox.control.add_fault(op="details", kind="http_error", status=404)

    assert "Retrying" in bench.run(job).sentence
    bench.run(job)

    assert bench.read(job).state is JobState.DOWNLOADING


def test_a_training_that_segmind_forgot_fails_its_job(bench: Bench) -> None:
    [job] = bench.trained(1, training_seconds=600)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True, finetune_id="never-was")

    for _ in range(bench.container.settings.finetune_max_attempts):
        assert bench.read(job).state is JobState.TRAINING
        bench.run(job)

    assert bench.read(job).state is JobState.FAILED
    assert bench.error(job).code == "not_found"


def test_a_training_that_is_not_found_is_no_sign_that_segmind_is_well(bench: Bench) -> None:
    """Another API at its address would say the same."""
    [job] = bench.trained(1, training_seconds=600)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True, finetune_id="never-was")
    bench.container.jobs._redis.hset(keys.account("default"), "probing", "1")

    bench.run(job)

    assert bench.error(job).code == "not_found"
    assert bench.container.accounts.status("default").probing


def test_a_training_that_never_ends_fails_its_job(bench: Bench) -> None:
    [job] = bench.trained(1, training_seconds=600)
    bench.let_stay(job, bench.container.settings.finetune_training_limit)

    bench.run(job)

    assert bench.read(job).state is JobState.FAILED
    assert bench.error(job).code == "training_too_long"
    assert bench.finetune_id(job) in bench.error(job).message


def test_a_training_that_ended_while_nobody_could_look_is_fetched_however_late(bench: Bench) -> None:
    [job] = bench.trained(1)
    bench.let_stay(job, bench.container.settings.finetune_training_limit)

    bench.run(job)

    assert bench.read(job).state is JobState.DOWNLOADING


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "rate_limited"},
        {"kind": "http_error", "status": 503},
        {"kind": "reset"},
        {"kind": "http_error", "status": 404},
    ],
)
def test_a_sweep_that_fails_moves_nobody_and_pauses_the_account(bench: Bench, fault: dict[str, Any]) -> None:
    jobs = bench.trained(2, list_carries_weights_url=True)
    bench.sandbox.control.add_fault(op="list", **fault)

    sweep(bench.container, "default")

    assert {bench.read(job).state for job in jobs} == {JobState.TRAINING}
    assert bench.container.accounts.status("default").paused_for > 0


@pytest.mark.parametrize(("kind", "slot_in"), [("slow", 72), ("reset", 60)])
def test_a_call_that_timed_out_may_still_arrive_and_keeps_its_slot(bench: Bench, kind: str, slot_in: float) -> None:
    [job] = bench.trained(1, training_seconds=600)
    redis: Any = bench.container.jobs._redis
    redis.delete(keys.slots("default"))
    bench.sandbox.control.add_fault(op="details", kind=kind, **({"seconds": 1.5} if kind == "slow" else {}))

    sweep(bench.container, "default")

    [(_, free_at)] = redis.zrange(keys.slots("default"), 0, -1, withscores=True)
    # 60 s after it ended; or after 2 s of time-out and 10 s of margin, by when it has ended for certain.
    seconds, micros = redis.time()
    assert slot_in - 5 < free_at / 1000 - seconds - micros / 1e6 <= slot_in + 1
    assert bench.read(job).state is JobState.TRAINING


def test_a_list_cut_short_still_moves_whom_it_showed(bench: Bench) -> None:
    jobs = bench.trained(4, list_carries_weights_url=True)
    bench.sandbox.control.add_fault(op="list", kind="malformed_json")

    sweep(bench.container, "default")

    states = [bench.read(job).state for job in jobs]
    assert states.count(JobState.DOWNLOADING) >= 1
    assert states.count(JobState.TRAINING) >= 1

"""The submit: at most once, whatever happens to the call that costs money."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

from finetune_queue.contract import JobRecord, JobState, WaitReason
from finetune_queue.store import Budget, Change, NotDurableError, jobs
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.segmind.client import SegmindClient
from support.bench import Bench, make_settings
from support.until import until


def test_an_accepted_submit_makes_the_job_a_training(bench: Bench) -> None:
    job = bench.submitting()

    result = bench.run(job)

    job = bench.read(job)
    assert job.state is JobState.TRAINING
    assert bench.finetune_id(job) in result.sentence
    assert job.owner == ""
    assert bench.submits() == 1


def test_an_answer_is_recorded_though_redis_was_away_when_its_slot_was_to_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> NoReturn:
        raise redis.ConnectionError

    monkeypatch.setattr(bench.container.budget, "end", away)
    job = bench.submitting()
    bench.run(job)
    assert bench.read(job).state is JobState.TRAINING


def test_steps_from_a_caller_without_integers_are_sent_as_one(bench: Bench) -> None:
    """JavaScript's clients may write 2000.0; the sandbox refuses it, as the API may."""
    job = bench.submitting(advance_parameters={"steps": 700.0, "learning_rate": 1.0})
    bench.run(job)
    assert bench.read(job).state is JobState.TRAINING
    [training] = bench.sandbox.control.trainings()
    assert json.dumps(training["request"]["advance_parameters"]) == '{"steps": 700, "learning_rate": 1.0}'


def test_a_submitted_job_waits_for_segmind_without_another_message(bench: Bench) -> None:
    bench.change_settings(finetune_unseen_limit=900, finetune_handover=30)
    job = bench.submitting()

    result = bench.run(job)

    job = bench.read(job)
    assert not result.proceed
    assert job.waiting_for is WaitReason.PROVIDER
    assert bench.due_ms(job) - job.updated_ms == pytest.approx(900_000, abs=5_000)


def test_a_second_message_submits_nothing(bench: Bench) -> None:
    job = bench.submitting()
    bench.run(job)
    assert not bench.run(job).sentence.startswith("submitted")
    assert bench.submits() == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "rate_limited", "retry_after": 30}, WaitReason.PAUSED),
        ({"kind": "http_error", "status": 401}, None),
        ({"kind": "http_error", "status": 402}, None),
        ({"kind": "http_error", "status": 406}, None),
        ({"kind": "http_error", "status": 422}, None),
    ],
    ids=lambda value: value.get("status", value["kind"]) if isinstance(value, dict) else "",
)
def test_a_clear_no_takes_the_intent_back(bench: Bench, fault: dict[str, Any], reason: WaitReason | None) -> None:
    bench.sandbox.control.add_fault(op="submit", **fault)
    job = bench.submitting()

    bench.run(job)

    job = bench.read(job)
    assert job.intent_ms is None
    assert job.waiting_for is reason
    assert job.attempts == 0
    assert job.state is (JobState.SUBMITTING if reason else JobState.FAILED)
    assert bench.container.accounts.status("default").spent_today == 0
    if reason is None:
        error = bench.error(job)
        assert error.message
        assert error.upstream_status == fault["status"]
        wrong_request = fault.get("status") == 422
        assert error.action.startswith("Submit again" if wrong_request else "Once the cause is fixed")


def test_an_account_without_credits_is_held_back_and_pays_nothing(bench: Bench) -> None:
    job, next_one = bench.submitting(), bench.submitting()
    bench.sandbox.control.change_settings(credits=0)

    bench.run(job)
    bench.run(next_one)

    assert bench.error(job).code == "credits_exhausted"
    assert "no credits left" in bench.error(job).message
    assert bench.read(next_one).waiting_for is WaitReason.PAUSED
    status = bench.container.accounts.status("default")
    assert (status.unwell, status.spent_today) == ("credits_exhausted", 0)
    assert "no credits left" in status.pause_reason


def test_a_refused_connection_uses_no_attempt_and_pauses_the_account(bench: Bench) -> None:
    job = bench.submitting()
    client = bench.container.segmind("default")
    client.close()
    bench.container._clients["default"] = type(client)(
        "http://127.0.0.1:1", bench.container.settings.accounts["default"].api_key,
        connect_timeout=1, read_timeout=1, call_timeout=2,
    )  # fmt: skip

    bench.run(job)

    job = bench.read(job)
    assert (job.state, job.intent_ms, job.attempts) == (JobState.SUBMITTING, None, 0)
    assert job.waiting_for is WaitReason.PAUSED
    status = bench.container.accounts.status("default")
    assert status.paused_for > 0
    assert status.waiting == 1
    assert status.spent_today == 0


def test_an_answer_that_takes_longer_than_a_lease_is_still_taken(bench: Bench, tmp_path: Path) -> None:
    values = make_settings(
        bench.sandbox,
        bench.container.settings.finetune_redis_url,
        tmp_path,
        finetune_lease=0.3,
        segmind_read_timeout=20,
    )
    bench.container = replace(bench.container, settings=values, _clients={})
    job = bench.submitting()
    bench.sandbox.control.add_fault(op="submit", kind="slow", seconds=0.8, processed=True)
    submitting = threading.Thread(target=bench.run, args=(job,))
    submitting.start()
    until(lambda: bench.read(job).intent_ms is not None, seconds=30)
    dispatcher = Dispatcher(bench.container)
    while submitting.is_alive():
        dispatcher.step()
        submitting.join(0.05)
    bench.container.close()

    job = bench.read(job)
    assert (job.state, job.takeovers) == (JobState.TRAINING, 0)
    assert job.finetune_id is not None


def test_a_worker_overtaken_before_it_wrote_the_intent_has_spent_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submitting()
    take = Budget.take

    def overtaken(budget: Budget, *args: Any, **options: Any) -> Any:
        slot = take(budget, *args, **options)
        bench.container.jobs.transition(bench.read(job), Change(delay=60), owner="another")
        return slot

    monkeypatch.setattr(Budget, "take", overtaken)
    assert "went on without this worker" in bench.run(job).sentence
    assert bench.container.accounts.status("default").spent_today == bench.submits() == 0


def test_a_log_that_does_not_confirm_the_intent_stops_the_submit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submitting()
    monkeypatch.setattr(redis.client.Pipeline, "waitaof", lambda self, *_: self.execute_command("ECHO", "0"))
    monkeypatch.setattr(jobs, "check_durable", lambda job, *_: (_ for _ in ()).throw(NotDurableError(job)))

    bench.run(job)

    job = bench.read(job)
    assert (job.state, job.intent_ms, job.owner) == (JobState.SUBMITTING, None, "")
    assert (job.attempts, job.outages) == (0, 1)
    assert bench.error(job).code == "store_not_durable"
    assert bench.submits() == 0
    assert bench.container.accounts.status("default").spent_today == 0


def test_a_store_that_is_full_when_the_intent_is_due_stops_the_submit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submitting()
    client = bench.container.jobs._redis
    take = bench.container.budget.take

    def then_full(*args: Any, **kwargs: Any) -> Any:
        slot = take(*args, **kwargs)
        client.config_set("maxmemory", 1)
        return slot

    monkeypatch.setattr(bench.container.budget, "take", then_full)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            bench.run(job)
    finally:
        client.config_set("maxmemory", 0)

    assert bench.submits() == 0
    assert bench.read(job).intent_ms is None
    assert bench.read(job).owner == "task-1"  # until its lease is over


def test_a_worker_overtaken_while_it_waited_for_the_log_writes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submitting()

    def overtaken(job: JobRecord, *_: Any) -> None:
        bench.container.jobs.transition(job, Change(delay=60), owner="another")
        raise NotDurableError(job)

    monkeypatch.setattr(jobs, "check_durable", overtaken)
    assert "refused" in bench.run(job).sentence
    assert bench.read(job).owner == "another"
    assert bench.read(job).intent_ms is not None


def test_a_worker_that_stood_still_does_not_send(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_queue.store.budget.START_WITHIN", -1.0)
    job = bench.submitting()

    bench.run(job)

    assert bench.submits() == 0
    job = bench.read(job)
    assert (job.state, job.intent_ms) == (JobState.SUBMITTING, None)
    assert bench.container.accounts.status("default").spent_today == 0


def test_a_worker_whose_job_ended_while_it_stood_still_takes_no_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submitting()
    take = bench.container.budget.take

    def late(*args: Any, **kwargs: Any) -> Any:
        bench.container.jobs.transition(bench.read(job), Change(), to=JobState.CANCELLED, owner="")
        return take(*args, **kwargs)

    monkeypatch.setattr(bench.container.budget, "take", late)

    assert "refused" in bench.run(job).sentence
    status = bench.container.accounts.status("default")
    assert (status.in_flight, status.spent_today) == (0, 0)
    assert bench.submits() == 0


def test_the_intent_is_written_before_the_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = SegmindClient.submit
    at_the_call: list[JobRecord] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        at_the_call.append(bench.read(job))
        return submit(*args, **kwargs)

    monkeypatch.setattr(SegmindClient, "submit", noted)
    job = bench.submitting()
    bench.run(job)
    [stored] = at_the_call
    assert stored.intent_ms is not None


def test_a_training_that_waited_long_for_its_submit_is_looked_at_no_sooner(bench: Bench) -> None:
    """Its limit begins when it does: else each one of a backlog behind a day's cap would be due again at once."""
    bench.sandbox.control.change_settings(training_seconds=600)
    job = bench.submitting()
    bench.let_stay(job, bench.container.settings.finetune_training_limit)
    bench.run(job)
    job = bench.read(job)
    assert job.state is JobState.TRAINING
    due_in = (bench.due_ms(job) - job.updated_ms) / 1000
    assert due_in == pytest.approx(bench.container.settings.finetune_unseen_limit, abs=5)

"""The submit: at most once, whatever happens to the call that costs money."""

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue.contract import EventType, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import Budget, Change, NotDurableError, jobs, keys
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.models import FinetuneItem, SubmitReply, SubmitRequest
from finetune_worker.stages import calls
from finetune_worker.stages.reconcile import Sightings, reconcile, sight
from finetune_worker.stages.sweep import sweep
from segmind_sandbox.trainings import Training
from support.bench import Bench, make_settings
from support.until import until


def test_an_accepted_submit_makes_the_job_a_training(bench: Bench) -> None:
    job = bench.submitting()

    result = bench.run(job)

    job = bench.read(job)
    assert result.proceed
    assert job.state is JobState.TRAINING
    assert bench.finetune_id(job) in result.sentence
    assert job.owner == ""
    assert bench.submits() == 1


def test_a_second_message_submits_nothing(bench: Bench) -> None:
    job = bench.submitting()
    bench.run(job)
    assert not bench.run(job).sentence.startswith("submitted")
    assert bench.submits() == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "reply_lost"},
        {"kind": "http_error", "status": 502, "processed": True},
        {"kind": "malformed_json"},
        {"kind": "html_200", "processed": True},
        {"kind": "slow", "seconds": 1.5, "processed": True},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_submit_whose_answer_is_lost_is_found_and_not_repeated(bench: Bench, fault: dict[str, Any]) -> None:
    bench.sandbox.control.add_fault(op="submit", **fault)
    job = bench.submitting()

    result = bench.run(job)
    assert "not sending again" in result.sentence
    assert bench.read(job).state is JobState.SUBMITTING
    bench.run(job)
    assert bench.submits() == 1

    open_for_calls(bench)
    sweep(bench.container, "default")

    job = bench.read(job)
    assert job.state in {JobState.TRAINING, JobState.DOWNLOADING}
    assert job.finetune_id == bench.sandbox.control.trainings()[0]["finetune_id"]
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
        assert job.error is not None
        assert job.error.message
        wrong_request = fault.get("status") == 422
        assert job.error.action.startswith("Submit again" if wrong_request else "When the cause is mended")


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


def test_a_dead_worker_s_submit_that_never_left_is_sent_after_the_settle_time(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    bench.run(job)
    assert bench.submits() == 0

    def absent() -> bool:
        open_for_calls(bench)
        sweep(bench.container, "default")
        return bench.read(job).intent_ms is None

    started = time.monotonic()
    until(absent, seconds=20, pause=0.3)
    assert time.monotonic() - started >= bench.container.settings.finetune_settle_time

    open_for_calls(bench)
    bench.run(job)
    assert bench.read(job).state is JobState.TRAINING
    assert bench.submits() == 1


def test_a_list_that_lags_does_not_make_a_submit_absent(bench: Bench) -> None:
    bench.sandbox.control.change_settings(list_lag_seconds=4)
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)

    def found() -> bool:
        open_for_calls(bench)
        sweep(bench.container, "default")
        return bench.read(job).finetune_id is not None

    until(found, seconds=20, pause=0.3)
    assert bench.submits() == 1
    bench.sandbox.control.change_settings(list_lag_seconds=0)


@pytest.mark.parametrize(("status", "tries"), [(409, [1, 2]), (500, [0, 0])], ids=["an answer", "an outage"])
def test_submits_that_never_have_a_clear_answer_use_up_the_attempts_but_for_an_outage(
    bench: Bench, status: int, tries: list[int]
) -> None:
    values = bench.container.settings.model_copy(update={"finetune_max_attempts": 2})
    bench.container = replace(bench.container, settings=values)
    bench.sandbox.control.add_fault(op="submit", kind="http_error", status=status, count=None)
    job = bench.submitting()

    def sent_and_absent() -> JobRecord:
        open_for_calls(bench)
        bench.run(job)
        assert bench.read(job).waiting_for is WaitReason.PROVIDER
        bench.container.jobs.transition(bench.read(job), Change(delay=60), intent_ms=1, looks=50)
        open_for_calls(bench)
        sweep(bench.container, "default")
        return bench.read(job)

    first = sent_and_absent()
    assert (first.state, first.attempts, first.intent_ms) == (JobState.SUBMITTING, tries[0], None)
    last = sent_and_absent()
    assert (last.attempts, last.intent_ms) == (tries[1], None)
    if status == 500:
        assert last.state is JobState.SUBMITTING
    else:
        assert (last.state, last.failed_stage) == (JobState.FAILED, Stage.SUBMIT)
        assert bench.error(job).code == "submit_unanswered"
    assert bench.container.accounts.status("default").spent_today == 2  # as a list may be wrong


def test_a_submit_that_may_go_again_waits_for_its_slot_until_the_caller_s_deadline_only(bench: Bench) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    job = dead_in_the_middle(bench, bench.submitting(deadline=deadline.isoformat()))
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1, looks=50)

    sweep(bench.container, "default")

    assert bench.read(job).intent_ms is None
    assert bench.due_ms(job) / 1000 <= deadline.timestamp() + 1


def test_a_partial_list_says_nothing_about_absence(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1, looks=50)
    bench.sandbox.control.add_fault(op="list", kind="malformed_json")

    sweep(bench.container, "default")

    assert bench.read(job).intent_ms == 1


def test_a_list_with_an_item_that_cannot_be_read_says_nothing_about_absence(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), intent_ms=1, looks=50)
    monkeypatch.setattr(Training, "list_item", lambda *_: '{"finetune_id": null}')
    open_for_calls(bench)

    sweep(bench.container, "default")

    assert bench.read(job).intent_ms == 1


@pytest.mark.parametrize(
    "spelling",
    [lambda url: url.replace("-", "%2D"), lambda url: url + "?x=1", lambda url: url.replace("http:", "s3:")],
    ids=["quoted", "with a query", "as another URL"],
)
def test_a_mark_is_found_however_the_list_spells_the_url(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, spelling: Any
) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    spell(monkeypatch, lambda item: {**item, "data_source_path": spelling(item["data_source_path"])})
    open_for_calls(bench)

    sweep(bench.container, "default")

    assert bench.read(job).finetune_id is not None


def test_a_list_that_does_not_name_datasets_leaves_it_to_the_details(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bench.submitting()
    bench.run(other)
    bench.container.jobs._redis.delete(keys.owners())  # as if somebody else had trained it
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    spell(monkeypatch, lambda item: {**item, "data_source_path": None})

    def found() -> bool:
        open_for_calls(bench)
        sweep(bench.container, "default")
        open_for_calls(bench)
        if bench.read(job).candidates:
            bench.run(job)
        return bench.read(job).finetune_id is not None

    until(found, seconds=15)
    assert bench.read(job).finetune_id == bench.sandbox.control.trainings()[-1]["finetune_id"]
    assert bench.read(other).finetune_id != bench.read(job).finetune_id
    assert bench.submits() == 2


def test_of_two_trainings_with_the_mark_the_earlier_is_adopted_and_none_is_added(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    job = bench.submitting()
    client = bench.container.segmind("default")
    body = SubmitRequest(
        name="a-face", data_source_path=job.dataset_url, instance_prompt="photo of 1MAN", trigger_word="1MAN"
    )
    first, _second = client.submit(body), client.submit(body)
    dead_in_the_middle(bench, job)

    sweep(bench.container, "default")

    assert bench.read(job).finetune_id == first.finetune_id
    assert "training_paid_twice" in capsys.readouterr().out
    bench.run(job)
    assert bench.submits() == 2


def test_a_list_that_shows_a_training_twice_tells_of_one(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    job = bench.read(job)
    item = FinetuneItem(
        finetune_id=bench.sandbox.control.trainings()[0]["finetune_id"], data_source_path=job.dataset_url
    )
    seen = Sightings()
    for _ in range(2):
        sight(job, item, seen)

    assert reconcile(bench.container, job, seen, asked_ms=job.updated_ms, complete=True) == "adopted"
    assert "training_paid_twice" not in capsys.readouterr().out


def test_an_answer_that_takes_longer_than_a_lease_is_still_taken(bench: Bench, tmp_path: Path) -> None:
    values = make_settings(
        bench.sandbox, bench.container.settings.finetune_redis_url, tmp_path, finetune_lease=0.3, segmind_read_timeout=2
    )
    bench.container = replace(bench.container, settings=values, _clients={})
    job = bench.submitting()
    bench.sandbox.control.add_fault(op="submit", kind="slow", seconds=0.8, processed=True)
    submitting = threading.Thread(target=bench.run, args=(job,))
    submitting.start()
    until(lambda: bench.read(job).intent_ms is not None, seconds=5)
    dispatcher = Dispatcher(bench.container)
    while submitting.is_alive():
        dispatcher.step()
        submitting.join(0.05)
    bench.container.close()

    job = bench.read(job)
    assert (job.state, job.takeovers) == (JobState.TRAINING, 0)
    assert job.finetune_id is not None


def test_its_job_is_held_for_as_long_as_the_call_can_last(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_url = bench.container.settings.finetune_redis_url
    values = make_settings(bench.sandbox, redis_url, tmp_path, finetune_lease=0.1)
    bench.container = replace(bench.container, settings=values)
    job = bench.submitting()
    held: list[float] = []

    def look(_client: SegmindClient, _request: SubmitRequest) -> SubmitReply:
        due = bench.container.jobs._redis.zscore(keys.deadlines(), job.id) or 0.0
        held.append((due - bench.read(job).updated_ms) / 1000)
        return SubmitReply(finetune_id="f-1", status="REQUESTED")

    monkeypatch.setattr(SegmindClient, "submit", look)
    bench.run(job)
    assert held == [calls.FRESH + values.segmind_call_timeout]


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


def test_a_submit_whose_fate_nobody_can_tell_is_shown_to_a_person_in_the_end(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1)

    bench.run(job)

    job = bench.read(job)
    assert job.state is JobState.NEEDS_ATTENTION
    assert job.tracked
    assert "no complete list" in job.evidence[-1]
    assert bench.submits() == 0


def test_a_log_that_does_not_confirm_the_intent_stops_the_submit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submitting()
    monkeypatch.setattr(redis.client.Pipeline, "waitaof", lambda self, *_: self.execute_command("ECHO", "0"))
    monkeypatch.setattr(jobs, "check_durable", lambda job, _: (_ for _ in ()).throw(NotDurableError(job)))

    bench.run(job)

    job = bench.read(job)
    assert (job.state, job.intent_ms, job.attempts, job.owner) == (JobState.SUBMITTING, None, 1, "")
    assert job.error is not None
    assert job.error.code == "store_not_durable"
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

    def overtaken(job: JobRecord, _reply: Any) -> None:
        bench.container.jobs.transition(job, Change(delay=60), owner="another")
        raise NotDurableError(job)

    monkeypatch.setattr(jobs, "check_durable", overtaken)
    assert "refused" in bench.run(job).sentence
    assert bench.read(job).owner == "another"
    assert bench.read(job).intent_ms is not None


def test_two_jobs_with_one_public_url_each_find_their_own_training(bench: Bench) -> None:
    older = bench.submitting(passed_through=True)
    bench.run(older)
    until(lambda: bench.read(older).finetune_id is not None, seconds=5)
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting(passed_through=True)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), dataset_url=bench.read(older).dataset_url)
    bench.run(job)

    def found() -> bool:
        open_for_calls(bench)
        sweep(bench.container, "default")
        open_for_calls(bench)
        if bench.read(job).candidates:
            bench.run(job)
        return bench.read(job).finetune_id is not None

    until(found, seconds=15, pause=0.2)
    assert bench.read(job).finetune_id != bench.read(older).finetune_id
    assert bench.submits() == 2


def test_an_item_of_the_list_whose_dataset_is_no_url_is_somebody_else_s(bench: Bench) -> None:
    job = bench.submitting(passed_through=True)
    seen = Sightings()
    sight(job, FinetuneItem(finetune_id="ft-1", name=job.request.name, data_source_path="https://[faces]/y.zip"), seen)
    sight(job, FinetuneItem(finetune_id="ft-2", name=job.request.name, data_source_path=job.dataset_url), seen)
    assert seen.alike == ["ft-2"]


def test_a_worker_that_stood_still_does_not_send(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FRESH", -1.0)
    job = bench.submitting()

    bench.run(job)

    assert bench.submits() == 0
    job = bench.read(job)
    assert (job.state, job.intent_ms) == (JobState.SUBMITTING, None)


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
    assert (status.tracked, status.spent_today) == (0, 0)
    assert bench.submits() == 0


def test_the_intent_is_written_before_the_call(bench: Bench) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="slow", seconds=0.5)
    job = bench.submitting()
    bench.run(job)
    kinds = [event.kind for event in bench.container.jobs.events(job.id)]
    assert kinds[-1] is EventType.TRAINING


def spell(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Have the sandbox's list show its items in another way."""
    original = Training.list_item
    monkeypatch.setattr(Training, "list_item", lambda self, now: json.dumps(change(json.loads(original(self, now)))))


def dead_in_the_middle(bench: Bench, job: JobRecord) -> JobRecord:
    """Leave the job as a worker does that was killed between its intent and its call."""
    jobs = bench.container.jobs
    now = int(time.time() * 1000)
    job = jobs.transition(bench.read(job), Change(delay=60), owner="dead", intent_ms=now)
    return jobs.transition(job, Change(delay=60), owner="")


def open_for_calls(bench: Bench) -> None:
    """End the account's pause, so that a test need not wait for it."""
    client = bench.container.jobs._redis
    client.hdel(keys.account("default"), "paused_until", "probing", "probe_until")

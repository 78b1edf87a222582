"""A submit without a clear answer: its training is looked for at Segmind, and nothing is paid twice on a guess."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import PAID_TWICE, Change, keys
from finetune_worker.segmind.models import FinetuneItem, SubmitRequest
from finetune_worker.stages.reconcile import Undecided, reconcile
from finetune_worker.stages.training_request import training_request
from finetune_worker.stages.whose import Sightings, sight
from segmind_sandbox.trainings import Training
from support.bench import Bench, sweep
from support.until import until


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

    bench.end_pause()
    sweep(bench.container, "default")

    job = bench.read(job)
    assert job.state in {JobState.TRAINING, JobState.DOWNLOADING}
    assert job.finetune_id == bench.sandbox.control.trainings()[0]["finetune_id"]
    assert bench.submits() == 1


def test_a_submit_whose_answer_is_lost_is_looked_for_at_once(bench: Bench) -> None:
    bench.trained(1, training_seconds=600)
    accounts = bench.container.accounts._redis
    accounts.hset(keys.account("default"), "sweep_at", "9000000000000")  # its training is not worth a look
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    bench.run(bench.submitting())
    assert int(str(accounts.hget(keys.account("default"), "sweep_at"))) <= bench.container.deadlines.now_ms()


def test_a_sweep_leaves_a_submit_to_the_worker_that_waits_for_its_answer(bench: Bench) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    held = bench.container.jobs.transition(bench.read(job), Change(delay=30), owner="waits for its answer")

    bench.end_pause()
    sweep(bench.container, "default")

    assert bench.read(job) == held  # or the answer would be refused as that of a worker which was overtaken


def test_a_dead_worker_s_submit_that_never_left_is_sent_after_the_settle_time(bench: Bench) -> None:
    bench.change_settings(segmind_call_timeout=0.4, finetune_settle_time=2.0)
    started = time.monotonic()
    job = dead_in_the_middle(bench, bench.submitting())
    bench.run(job)
    assert bench.submits() == 0

    def absent() -> bool:
        bench.end_pause()
        sweep(bench.container, "default")
        return bench.read(job).intent_ms is None

    until(absent, seconds=20, pause=0.3)
    assert time.monotonic() - started >= bench.container.settings.finetune_settle_time

    bench.end_pause()
    bench.run(job)
    assert bench.read(job).state is JobState.TRAINING
    assert bench.submits() == 1


def test_a_list_that_lags_does_not_make_a_submit_absent(bench: Bench) -> None:
    bench.change_settings(segmind_call_timeout=0.4, finetune_settle_time=2.6)
    bench.sandbox.control.change_settings(list_lag_seconds=2)
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)

    def found() -> bool:
        bench.end_pause()
        sweep(bench.container, "default")
        return bench.read(job).finetune_id is not None

    until(found, seconds=20, pause=0.3)
    assert bench.submits() == 1
    bench.sandbox.control.change_settings(list_lag_seconds=0)


@pytest.mark.parametrize(
    ("fault", "tries"),
    [
        ({"kind": "http_error", "status": 409}, [1, 2]),
        ({"kind": "html_200"}, [1, 2]),
        ({"kind": "http_error", "status": 500}, [0, 0]),
    ],
    ids=["an answer", "an unreadable answer", "an outage"],
)
def test_submits_that_never_have_a_clear_answer_use_up_the_attempts_but_for_an_outage(
    bench: Bench, fault: dict[str, Any], tries: list[int]
) -> None:
    bench.change_settings(finetune_max_attempts=2)
    bench.sandbox.control.add_fault(op="submit", count=None, **fault)
    job = bench.submitting()

    def sent_and_absent() -> JobRecord:
        bench.end_pause()
        bench.run(job)
        assert bench.read(job).waiting_for is WaitReason.PROVIDER
        bench.container.jobs.transition(bench.read(job), Change(delay=60), intent_ms=1, looks=50)
        bench.end_pause()
        sweep(bench.container, "default")
        return bench.read(job)

    first = sent_and_absent()
    assert (first.state, first.attempts, first.intent_ms) == (JobState.SUBMITTING, tries[0], None)
    last = sent_and_absent()
    assert (last.attempts, last.intent_ms) == (tries[1], None)
    if tries == [0, 0]:
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
    bench.end_pause()

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
    bench.end_pause()

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

    until(lambda: looked_for(bench, job), seconds=15)
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
    first, second = client.submit(body), client.submit(body)
    dead_in_the_middle(bench, job)

    sweep(bench.container, "default")

    assert bench.read(job).finetune_id == first.finetune_id
    assert "training_paid_twice" in capsys.readouterr().out
    assert f"paid for more than once: also as {second.finetune_id}" in bench.read(job).evidence[-1]
    bench.container.counters.send()
    assert bench.container.counters.read()[PAID_TWICE][()].value == 1
    bench.run(job)
    assert bench.submits() == 2


def test_a_list_that_shows_a_training_twice_tells_of_one(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting()
    bench.run(job)
    job = bench.read(job)
    item = FinetuneItem(
        finetune_id=bench.sandbox.control.trainings()[0]["finetune_id"],
        name=job.request.name,
        data_source_path=job.dataset_url,
    )
    seen = Sightings()
    for _ in range(2):
        sight(job, item, seen)

    undecided = Undecided(bench.container, job.account)
    assert reconcile(bench.container, job, seen, undecided, asked_ms=job.updated_ms, complete=True) == "adopted"
    assert "training_paid_twice" not in capsys.readouterr().out


def test_a_submit_whose_fate_nobody_can_tell_is_shown_to_a_person_in_the_end(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1)
    bench.container.jobs._redis.hset(keys.job(job.id), "entered_ms", "1")

    bench.run(job)

    job = bench.read(job)
    assert job.state is JobState.NEEDS_ATTENTION
    assert job.tracked
    assert "no complete list" in job.evidence[-1]
    assert bench.submits() == 0


def test_a_late_retry_of_a_lost_submit_looks_for_its_training_as_long_again(bench: Bench) -> None:
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting(passed_through=True)
    bench.run(job)
    jobs = bench.container.jobs
    jobs.transition(bench.read(job), Change(), to=JobState.FAILED, failed_stage=Stage.SUBMIT, owner="")  # its deadline
    jobs._redis.hset(keys.job(job.id), mapping={"entered_ms": "1", "intent_ms": "1"})

    with FineTuneQueue(bench.container.settings) as queue:
        queue.retry(job.id)
    bench.run(job)

    assert bench.read(job).state is JobState.SUBMITTING
    assert bench.submits() == 1


def test_a_person_is_told_what_was_left_to_look_at(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1, candidates=["ft-1", "ft-2"])
    bench.container.jobs._redis.hset(keys.job(job.id), "entered_ms", "1")

    bench.run(job)

    job = bench.read(job)
    assert job.state is JobState.NEEDS_ATTENTION
    assert "it is still unclear whether one of 2 trainings is this job's: ft-1, ft-2" in job.evidence[-1]


def test_a_training_of_another_name_on_its_upload_is_not_the_job_s_and_a_reason_to_ask_a_person(bench: Bench) -> None:
    job = dead_in_the_middle(bench, bench.submitting())
    body = training_request(job).model_copy(update={"name": "another"})
    reply = bench.container.segmind("default").submit(body)

    sweep(bench.container, "default")
    assert (bench.read(job).state, bench.read(job).finetune_id) == (JobState.SUBMITTING, None)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), intent_ms=1, looks=50)
    sweep(bench.container, "default")

    job = bench.read(job)
    assert (job.state, job.finetune_id) == (JobState.NEEDS_ATTENTION, None)
    assert f"training {reply.finetune_id} has this job's dataset, and another name" in job.evidence[-1]


def test_what_was_just_seen_is_looked_at_before_what_is_left_of_older_ones(bench: Bench) -> None:
    job = bench.submitting(passed_through=True)
    job = bench.container.jobs.transition(job, Change(delay=60), intent_ms=1, candidates=["ft-1", "ft-2"])
    seen = Sightings(alike=["ft-3", "ft-1", "ft-2"])
    undecided = Undecided(bench.container, job.account)

    assert reconcile(bench.container, job, seen, undecided, asked_ms=job.updated_ms, complete=True) == "candidate"

    assert bench.read(job).candidates == ["ft-3", "ft-1", "ft-2"]


def test_two_jobs_with_one_public_url_each_find_their_own_training(bench: Bench) -> None:
    older = bench.submitting(passed_through=True)
    bench.run(older)
    until(lambda: bench.read(older).finetune_id is not None, seconds=30)
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = bench.submitting(passed_through=True)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), dataset_url=bench.read(older).dataset_url)
    bench.run(job)

    until(lambda: looked_for(bench, job), seconds=15, pause=0.2)
    assert bench.read(job).finetune_id != bench.read(older).finetune_id
    assert bench.submits() == 2


def test_an_item_of_the_list_whose_dataset_is_no_url_is_somebody_else_s(bench: Bench) -> None:
    job = bench.submitting(passed_through=True)
    seen = Sightings()
    sight(job, FinetuneItem(finetune_id="ft-1", name=job.request.name, data_source_path="https://[faces]/y.zip"), seen)
    sight(job, FinetuneItem(finetune_id="ft-2", name=job.request.name, data_source_path=job.dataset_url), seen)
    assert seen.alike == ["ft-2"]


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


def looked_for(bench: Bench, job: JobRecord) -> bool:
    """Look for the job's training as the sweeps and the submit stage do, and tell whether it was found."""
    bench.end_pause()
    sweep(bench.container, "default")
    bench.end_pause()
    if bench.read(job).candidates:
        bench.run(job)
    return bench.read(job).finetune_id is not None

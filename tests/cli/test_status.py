"""What `finetune status` says of a job: where it is, why it waits, and what to do."""

import re
import time
from typing import Any

import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import JobError, JobState, Stage, WaitReason
from finetune_queue.store import AccountLimits, Change, connect, keys
from support.cli import Run, Worker


def test_status_says_why_a_job_waits(run: Run, worker: Worker) -> None:
    worker.announce(calls=1, window=30)
    worker.park(worker.accept(), WaitReason.API_SLOT, score=1)
    job = worker.park(worker.accept(name="second"), WaitReason.API_SLOT, score=2)
    result = run("status", job.id)
    assert result.code == ExitCode.OK
    assert result.out.startswith("second: accepted\n")
    assert "waiting for an API call within the rate limit, 1 ahead, about 30 s" in result.out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert waiting["reason"] == "api-slot"
    assert waiting["ahead"] == 1
    assert 25 < waiting["estimate_seconds"] < 35


def test_status_and_doctor_say_whether_submits_are_stopped_or_used_up(run: Run, worker: Worker) -> None:
    job = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.API_SLOT, score=1)
    uploading = worker.park(worker.bring(worker.accept(), JobState.UPLOADING), WaitReason.API_SLOT, score=2)
    worker.accounts.configure("default", AccountLimits(calls=5, window=60.0, max_submits_per_day=0))

    assert "the account has no submits left for today (UTC)" in run("status", job.id).out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["submits_stopped"]) == ("spending", False)
    assert "its workers are set to submit nothing" in run("doctor").out

    worker.accounts.configure("default", AccountLimits(calls=5, window=60.0))
    worker.accounts.stop_submits("default", stopped=True)
    assert "the account's submits are stopped (finetune account resume)" in run("status", job.id).out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["submits_stopped"]) == ("spending", True)
    assert run("status", uploading.id, "--json").json["waiting"]["reason"] == "api-slot"  # no paid call


def test_status_tells_no_time_where_a_training_has_to_end_first(run: Run, worker: Worker) -> None:
    job = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.TRAININGS, score=1)
    worker.bring(worker.accept(), JobState.TRAINING)
    worker.accounts.configure("default", AccountLimits(calls=1, window=60.0, max_training=1))
    waiting = run("status", job.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["estimate_seconds"]) == ("trainings", None)

    worker.accounts.configure("default", AccountLimits(calls=1, window=60.0, max_training=2))
    waiting = run("status", job.id, "--json").json["waiting"]
    assert waiting["reason"] == "api-slot"  # whatever held it back when it was parked
    assert waiting["estimate_seconds"] is not None


@pytest.mark.parametrize("cap", [{"max_training": 2}, {"max_submits_per_day": 2}])
def test_status_tells_no_time_where_those_in_front_take_all_that_a_cap_leaves(
    run: Run, worker: Worker, cap: dict[str, int]
) -> None:
    jobs = [worker.bring(worker.accept(name=f"face-{number}"), JobState.SUBMITTING) for number in range(3)]
    parked = [worker.park(job, WaitReason.API_SLOT, score=score) for score, job in enumerate(jobs)]
    worker.accounts.configure("default", AccountLimits(calls=10, window=60.0, **cap))
    told = [run("status", job.id, "--json").json["waiting"]["estimate_seconds"] for job in parked]
    assert told == [0, 0, None]


def test_status_says_when_a_job_that_was_sent_for_later_starts(run: Run, worker: Worker) -> None:
    worker.announce()
    job = worker.note(worker.accept(), waiting_for=WaitReason.START)
    assert "waiting for the time that its message set, about 10 min" in run("status", job.id).out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert waiting["reason"] == "start"
    assert 590 < waiting["estimate_seconds"] <= 600


def test_status_says_that_a_submit_without_an_answer_is_looked_for(run: Run, worker: Worker) -> None:
    job = worker.note(worker.bring(worker.accept(), JobState.SUBMITTING), waiting_for=WaitReason.PROVIDER)
    assert "Segmind is searched for its training before it may be sent again" in run("status", job.id).out


def test_status_says_why_the_account_is_paused(run: Run, worker: Worker, queue_url: str) -> None:
    worker.announce()
    job = worker.park(worker.accept(), WaitReason.API_SLOT, score=1)
    with connect(queue_url) as client:
        mapping = {"paused_until": int((time.time() + 300) * 1000), "pause_reason": "Segmind does not know the key."}
        client.hset(keys.account("default"), mapping=mapping)
    assert "the account is paused: Segmind does not know the key, about 5 min" in run("status", job.id).out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["pause_reason"]) == ("paused", "Segmind does not know the key.")


def test_status_says_that_one_call_tests_the_paused_account(run: Run, worker: Worker, queue_url: str) -> None:
    worker.announce()
    waits = worker.park(worker.accept(), WaitReason.API_SLOT, score=1)
    submits = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.PAUSED, score=2)
    soon = int((time.time() + 70) * 1000)
    with connect(queue_url) as client:
        refused = {"submits_refused": 1, "submits_probe_until": soon, "pause_reason": "There are no credits left."}
        client.hset(keys.account("default"), mapping=refused)
        tested = "the account is paused while one call tests it: "
        assert f"{tested}There are no credits left, 1 ahead" in run("status", submits.id).out
        assert "paused" not in run("status", waits.id).out
        down = {"probing": 1, "probe_until": soon, "pause_reason": "Segmind answered 503."}
        client.hset(keys.account("default"), mapping=down)
    assert f"{tested}Segmind answered 503" in run("status", waits.id).out
    waiting = run("status", waits.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["estimate_seconds"]) == ("paused", None)


def test_status_says_that_nobody_can_ask_after_a_training(run: Run, worker: Worker, queue_url: str) -> None:
    worker.announce()
    lost = worker.note(worker.bring(worker.accept(), JobState.SUBMITTING), waiting_for=WaitReason.PROVIDER)
    job = worker.bring(worker.accept(), JobState.TRAINING)
    with connect(queue_url) as client:
        refused: dict[Any, Any] = {"submits_refused": 1, "pause_reason": "There are no credits left."}
        client.hset(keys.account("default"), mapping=refused)
        assert "paused" not in run("status", job.id).out  # a training goes on without submits
        client.hset(keys.account("default"), mapping={"probing": 1, "pause_reason": "Segmind does not know the key."})
    paused = "; the account is paused: Segmind does not know the key"
    assert f"Segmind: REQUESTED{paused}" in run("status", job.id).out
    assert f"before it may be sent again{paused}" in run("status", lost.id).out
    waiting = run("status", job.id, "--json").json["waiting"]
    assert (waiting["reason"], waiting["pause_reason"]) == ("provider", "Segmind does not know the key.")


def test_a_pause_that_is_over_is_no_reason_to_wait(run: Run, worker: Worker) -> None:
    worker.announce()
    job = worker.park(worker.accept(), WaitReason.PAUSED, score=1)
    assert run("status", job.id, "--json").json["waiting"]["reason"] == "api-slot"


def test_status_says_when_the_worker_that_has_the_job_gave_its_last_sign(run: Run, worker: Worker) -> None:
    job = worker.move(worker.accept(), JobState.UPLOADING, owner="a task")
    said = r"worker +has the job; its last sign of life was \d\.\d s ago; if it has died, another takes over"
    assert re.search(said, run("status", job.id).out)
    worker.store.transition(job, Change(delay=600), owner="")
    assert "has the job" not in run("status", job.id).out


def test_status_of_a_job_that_ended(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.SUCCEEDED)
    result = run("status", job.id)
    assert "sha256    " + "ab" * 32 in result.out
    assert "weights   /srv/weights/job/weights.safetensors" in result.out
    assert f"event     {job.id}-6" in result.out
    assert run("status", job.id, "--json").json["weights"]["tensors"] == 170


def test_status_names_the_trace_of_a_traced_job(run: Run, worker: Worker) -> None:
    job = worker.note(worker.accept(), traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert "trace     4bf92f3577b34da6a3ce929d0e0e4736\n" in run("status", job.id).out


def test_status_of_a_failed_job_says_what_to_do(run: Run, worker: Worker) -> None:
    job = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING))
    result = run("status", job.id)
    assert result.code == ExitCode.OK
    for line in ("error     The disk is full.", "do        Free some space.", f"again     finetune retry {job.id}"):
        assert line in result.out


@pytest.mark.parametrize(
    ("stage", "code", "again"),
    [
        (Stage.UPLOAD, "dataset_bad_address", False),
        (Stage.SUBMIT, "request_rejected", False),
        (Stage.SUBMIT, "request_too_large", False),
        (Stage.POLL, "request_rejected", True),  # of a call that holds nothing of the request
    ],
)
def test_a_retry_is_not_advised_for_what_is_wrong_with_the_request_itself(
    run: Run, worker: Worker, stage: Stage, code: str, *, again: bool
) -> None:
    error = JobError(code=code, stage=stage, message="It is wrong.", action="Submit again.")
    failed = worker.move(worker.accept(), JobState.FAILED, error=error, failed_stage=stage)
    assert (f"again     finetune retry {failed.id}" in run("status", failed.id).out) is again


def test_status_of_a_job_that_needs_a_person_gives_the_evidence_and_the_commands(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.SUBMITTING)
    lost = JobError(code="worker_lost", stage="submit", message="Workers ended.", action="finetune retry")
    worker.move(job, JobState.NEEDS_ATTENTION, intent_ms=1, evidence=["two trainings carry the name"], error=lost)
    out = run("status", job.id).out
    assert "because   two trainings carry the name" in out
    [do] = [line for line in out.splitlines() if line.startswith("  do ")]  # and none to retry, which is refused
    assert f"`finetune resolve {job.id} --adopt FINETUNE_ID` if Segmind has its training" in do
    assert f"`finetune resolve {job.id} --resubmit` if it certainly has none: that is charged again" in do

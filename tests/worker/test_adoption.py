"""Which training a job may have when the answer to its submit was lost, or when a person names one."""

import time
from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.resuming import resubmitted, resume_at, to_adopt
from finetune_queue.store import Change
from finetune_worker.segmind.models import SubmitRequest
from finetune_worker.stages.training_request import training_request
from support.bench import Bench, sweep
from support.until import until


@pytest.fixture
def shared(bench: Bench) -> str:
    """The URL of a dataset that is not ours, and that several jobs are trained on."""
    url = bench.submitting(passed_through=True).dataset_url
    assert url is not None
    return url


def in_doubt(bench: Bench, shared: str, **request: Any) -> JobRecord:
    """Return a job whose submit reached Segmind and whose answer was lost."""
    bench.sandbox.control.add_fault(op="submit", kind="reply_lost")
    job = on_shared(bench, shared, **request)
    bench.run(job)
    bench.end_pause()
    return bench.read(job)


def on_shared(bench: Bench, shared: str, **request: Any) -> JobRecord:
    job = bench.submitting(passed_through=True, **request)
    return bench.container.jobs.transition(job, Change(delay=60), dataset_url=shared)


def look(bench: Bench, *jobs: JobRecord) -> bool:
    """Let a sweep see what Segmind has, and each of the jobs examine its candidates; tells whether all have found."""
    bench.end_pause()
    sweep(bench.container, "default")
    for job in jobs:
        bench.end_pause()
        if bench.read(job).state is JobState.SUBMITTING and bench.read(job).candidates:
            bench.run(job)
    return all(bench.read(job).finetune_id is not None for job in jobs)


def prompt_of(bench: Bench, job: JobRecord) -> str:
    """Return the prompt of the training that the job has."""
    details = bench.container.segmind("default").details(bench.finetune_id(job))
    assert details.instance_prompt is not None
    return details.instance_prompt


def train_elsewhere(bench: Bench, job: JobRecord, **change: Any) -> str:
    """Have somebody else train on the job's dataset under its name; returns the training's id."""
    body: SubmitRequest = training_request(job)
    return bench.container.segmind("default").submit(body.model_copy(update=change)).finetune_id


def test_jobs_that_differ_in_their_prompt_alone_each_find_their_own(bench: Bench, shared: str) -> None:
    jobs = [in_doubt(bench, shared, instance_prompt=f"a {word} of 1MAN") for word in ("cat", "dog", "cow")]

    until(lambda: look(bench, *jobs), seconds=15)

    assert [prompt_of(bench, job) for job in jobs] == [job.request.instance_prompt for job in jobs]
    assert bench.submits() == 3


def test_a_training_of_another_prompt_is_left_to_the_job_that_is_just_being_answered(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared, instance_prompt="a cat of 1MAN")
    answered = on_shared(bench, shared, instance_prompt="a dog of 1MAN")
    train_elsewhere(bench, answered)
    bench.container.jobs.transition(answered, Change(delay=60), intent_ms=bench.read(job).intent_ms, owner="task-2")

    until(lambda: look(bench, job), seconds=15)

    assert prompt_of(bench, job) == "a cat of 1MAN"


def test_what_may_be_that_of_a_submit_on_its_way_is_not_taken(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    twin = on_shared(bench, shared)
    bench.container.jobs.transition(twin, Change(delay=60), intent_ms=job.intent_ms, owner="task-2")

    look(bench, job)

    assert bench.read(job).state is JobState.SUBMITTING
    assert len(bench.read(job).candidates) == 1


def test_jobs_that_ask_for_the_same_may_have_each_other_s(bench: Bench, shared: str) -> None:
    jobs = [in_doubt(bench, shared) for _ in range(2)]

    until(lambda: look(bench, *jobs), seconds=15)

    assert len({bench.finetune_id(job) for job in jobs}) == 2


def test_what_cannot_be_told_apart_is_left_to_a_person(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared, advance_parameters={"steps": 500})
    other = in_doubt(bench, shared, advance_parameters={"steps": 1000})

    look(bench, job)

    job = bench.read(job)
    assert (job.state, job.finetune_id) == (JobState.NEEDS_ATTENTION, None)
    assert other.id in job.evidence[-1]


@pytest.mark.parametrize(
    "trouble", [{"kind": "malformed_json"}, {"kind": "http_error", "status": 404}], ids=lambda trouble: trouble["kind"]
)
def test_a_candidate_that_cannot_be_looked_at_for_a_moment_is_looked_at_again(
    bench: Bench, shared: str, trouble: dict[str, Any]
) -> None:
    job = in_doubt(bench, shared)
    fault = bench.sandbox.control.add_fault(op="details", count=None, **trouble)

    look(bench, job)
    assert (bench.read(job).state, bench.read(job).outages) == (JobState.SUBMITTING, 1)
    bench.sandbox.control.remove_fault(fault)
    until(lambda: look(bench, job), seconds=15)

    assert bench.submits() == 1


def test_an_outage_before_it_does_not_leave_a_candidate_to_a_person(bench: Bench, shared: str) -> None:
    """The first answer after a long outage, a poor one, would have been the last."""
    job = in_doubt(bench, shared)
    details: dict[str, Any] = {"op": "details", "kind": "http_error"}
    bench.sandbox.control.add_fault(**details, status=503, count=bench.container.settings.finetune_max_attempts)
    bench.sandbox.control.add_fault(**details, status=404)
    for _ in range(bench.container.settings.finetune_max_attempts):
        look(bench, job)
    assert bench.error(job).upstream_status == 503

    look(bench, job)
    waiting = bench.read(job)
    assert (waiting.state, waiting.outages, waiting.error) == (JobState.SUBMITTING, 1, None)
    until(lambda: look(bench, job), seconds=15)

    assert bench.submits() == 1


def test_a_candidate_that_never_can_be_looked_at_is_left_to_a_person(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    bench.sandbox.control.add_fault(op="details", kind="malformed_json", count=None)

    for _ in range(bench.container.settings.finetune_max_attempts):
        assert bench.read(job).state is JobState.SUBMITTING
        look(bench, job)

    assert bench.read(job).state is JobState.NEEDS_ATTENTION


def test_a_training_of_a_prompt_that_no_job_has_is_left_to_a_person(bench: Bench, shared: str) -> None:
    bench.change_settings(segmind_call_timeout=0.4, finetune_settle_time=1.0)
    job = on_shared(bench, shared)
    bench.sandbox.control.add_fault(op="submit", kind="reset")
    bench.run(job)
    bench.end_pause()
    finetune_id = train_elsewhere(bench, job, instance_prompt="somebody else's")

    until(lambda: look(bench, job) or bench.read(job).state is JobState.NEEDS_ATTENTION, seconds=20, pause=0.3)

    job = bench.read(job)
    assert job.finetune_id is None
    assert f"training {finetune_id} has this job's dataset, and another name or prompt" in job.evidence[-1]


def test_the_job_s_own_is_found_behind_one_of_another_prompt(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    train_elsewhere(bench, job, instance_prompt="somebody else's")  # the newest comes first

    until(lambda: look(bench, job), seconds=15)

    assert prompt_of(bench, job) == job.request.instance_prompt


@pytest.mark.parametrize(
    ("minutes", "state"), [(10, JobState.NEEDS_ATTENTION), (60, JobState.SUBMITTING)], ids=["near", "far"]
)
def test_a_submit_is_not_absent_while_a_training_like_its_own_of_about_that_time_is_nobody_s(
    bench: Bench, shared: str, minutes: int, state: JobState
) -> None:
    job = on_shared(bench, shared)
    sent_ms = int(time.time() * 1000) - minutes * 60_000
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=sent_ms, looks=50)
    finetune_id = train_elsewhere(bench, job)

    look(bench, job)  # at its details
    look(bench, job)

    job = bench.read(job)
    assert (job.state, job.intent_ms) == (state, sent_ms if state is JobState.NEEDS_ATTENTION else None)
    assert (f"training {finetune_id} has the same name and dataset, and was created" in job.evidence[-1]) == (
        state is JobState.NEEDS_ATTENTION
    )


def test_a_training_that_fits_another_job_better_is_no_reason_to_doubt(bench: Bench, shared: str) -> None:
    jobs = bench.container.jobs
    sent_ms = int(time.time() * 1000) - 600_000
    job = jobs.transition(on_shared(bench, shared), Change(delay=60), intent_ms=sent_ms, looks=50)
    twin = in_doubt(bench, shared)

    look(bench, job)
    look(bench, job)
    assert bench.read(job).intent_ms is None  # it may be sent again

    look(bench, twin)
    assert bench.finetune_id(twin) == bench.sandbox.control.trainings()[-1]["finetune_id"]


def test_a_training_that_a_twin_did_not_want_is_taken_after_all(bench: Bench, shared: str) -> None:
    job, twin = in_doubt(bench, shared), in_doubt(bench, shared)
    last = bench.sandbox.control.trainings()[-1]["finetune_id"]
    look(bench, job)
    assert list(bench.read(job).aside) == [last]  # the twin's, who was submitted just before
    bench.container.jobs.transition(bench.read(job), Change(delay=60), candidates=[], ruled_out=[_first(bench)])
    bench.container.jobs.transition(bench.read(twin), Change(), to=JobState.CANCELLED)

    until(lambda: look(bench, job), seconds=30)

    assert (bench.finetune_id(job), bench.read(job).aside) == (last, {})


def _first(bench: Bench) -> str:
    finetune_id: str = bench.sandbox.control.trainings()[0]["finetune_id"]
    return finetune_id


def named(bench: Bench, job: JobRecord, finetune_id: str) -> JobRecord:
    """Have a person name a training as the job's, which needs attention, and a worker look at it."""
    jobs = bench.container.jobs
    job = bench.read(job)
    if job.state is not JobState.NEEDS_ATTENTION:
        job = jobs.transition(job, Change(delay=60), to=JobState.NEEDS_ATTENTION)
    to, fields = to_adopt(job, finetune_id)
    jobs.transition(job, Change(delay=60), to=to, **fields)
    bench.end_pause()
    sweep(bench.container, "default")  # which must not send it again meanwhile
    bench.run(job)
    return bench.read(job)


def test_a_training_that_a_person_names_is_taken_however_long_ago_it_was(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    bench.container.jobs.transition(job, Change(delay=60), intent_ms=1)
    finetune_id = bench.sandbox.control.trainings()[-1]["finetune_id"]

    job = named(bench, job, finetune_id)

    assert (job.state, job.finetune_id, job.adopting) == (JobState.TRAINING, finetune_id, None)
    assert bench.container.jobs.owner_of(finetune_id) == job.id
    assert "adopted by hand" in job.evidence[-1]


def test_a_training_that_segmind_knows_by_another_spelling_is_taken_by_its_own(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    finetune_id = bench.sandbox.control.trainings()[-1]["finetune_id"]

    assert named(bench, job, f"{finetune_id} ").finetune_id == finetune_id
    assert bench.container.jobs.owner_of(finetune_id) == job.id


def test_a_training_that_is_not_there_can_be_named_and_another_after_it(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)

    job = named(bench, job, "mistyped")

    assert (job.state, job.finetune_id, job.adopting) == (JobState.NEEDS_ATTENTION, None, None)
    assert "details of mistyped" in job.evidence[-1]
    assert bench.container.jobs.owner_of("mistyped") is None
    assert named(bench, job, bench.sandbox.control.trainings()[-1]["finetune_id"]).state is JobState.TRAINING


def test_a_training_of_another_name_is_not_taken(bench: Bench, shared: str) -> None:
    job = in_doubt(bench, shared)
    finetune_id = train_elsewhere(bench, job, name="another")

    job = named(bench, job, finetune_id)

    assert (job.state, job.finetune_id) == (JobState.NEEDS_ATTENTION, None)
    assert "named 'another'" in job.evidence[-1]
    assert bench.container.jobs.owner_of(finetune_id) is None


def test_a_resubmit_by_hand_submits_and_does_not_adopt_what_was_named_before(bench: Bench) -> None:
    jobs, job = bench.container.jobs, bench.submitting()
    finetune_id = train_elsewhere(bench, job)
    left: dict[str, Any] = {"intent_ms": 1, "looks": 2, "candidates": [finetune_id], "adopting": finetune_id}
    job = jobs.transition(job, Change(delay=60), to=JobState.NEEDS_ATTENTION, **left)

    to, fields = resubmitted(job)
    jobs.transition(job, Change(delay=60), to=to, **fields)
    bench.run(job)

    assert bench.finetune_id(job) != finetune_id
    assert bench.submits() == 2


def test_a_retry_looks_at_what_was_named_before_it_failed_and_pays_for_nothing(bench: Bench) -> None:
    jobs, job = bench.container.jobs, bench.submitting()
    finetune_id = train_elsewhere(bench, job)
    _, fields = to_adopt(job, finetune_id)
    job = jobs.transition(job, Change(), to=JobState.FAILED, **fields | {"failed_stage": Stage.SUBMIT})

    to, fields = resume_at(job)
    jobs.transition(job, Change(delay=60), to=to, **fields)
    bench.run(job)

    assert bench.finetune_id(job) == finetune_id
    assert bench.submits() == 1


def test_a_job_that_forgot_its_submit_is_given_its_training_while_submits_are_stopped(bench: Bench) -> None:
    job = bench.submitting()  # as it is in a backup, which was made before its submit
    finetune_id = train_elsewhere(bench, job)
    bench.container.accounts.stop_submits("default", stopped=True)
    bench.run(job)
    job = bench.read(job)
    assert (job.state, job.intent_ms) == (JobState.SUBMITTING, None)

    _, fields = to_adopt(job, finetune_id)
    bench.container.jobs.transition(job, Change(delay=60), **fields)
    bench.run(job)

    job = bench.read(job)
    assert (job.state, job.finetune_id, job.adopting) == (JobState.TRAINING, finetune_id, None)
    assert bench.container.jobs.owner_of(finetune_id) == job.id
    assert bench.submits() == 1

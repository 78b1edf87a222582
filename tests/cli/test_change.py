"""Changing jobs: what is printed, as text and as JSON, and the exit codes."""

import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import EventType, JobError, JobState, WaitReason
from finetune_queue.store import Change
from support.cli import Run, Worker

pytestmark = pytest.mark.usefixtures("queue_url")


def test_cancel_of_a_job_that_nobody_holds(run: Run, worker: Worker) -> None:
    job = worker.accept()
    assert run("cancel", job.id).out == f"Job {job.id} is cancelled.\n"
    assert worker.store.get(job.id).state is JobState.CANCELLED
    again = run("cancel", job.id, "--json")
    assert again.code == ExitCode.CONFLICT
    assert again.error["code"] == "not_possible"
    done = worker.bring(worker.accept(), JobState.SUCCEEDED)
    assert run("cancel", done.id).err == f"error: Job {done.id} has succeeded already.\n"


def test_cancel_says_that_segmind_goes_on(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.TRAINING)
    assert "Segmind's training continues and is still charged" in run("cancel", job.id).out


def test_cancel_of_a_job_in_a_worker_s_hands(run: Run, worker: Worker) -> None:
    job = worker.note(worker.bring(worker.accept(), JobState.UPLOADING), owner="a-worker")
    result = run("cancel", job.id, "--json")
    assert result.code == ExitCode.OK
    assert result.json["cancel_requested"] is True
    assert "was asked to stop it" in run("cancel", job.id).out


def test_access_says_what_is_wanted_and_status_what_came_of_it(run: Run, worker: Worker) -> None:
    worker.announce()
    job = worker.bring(worker.accept(), JobState.SUCCEEDED)
    said = run("access", job.id, "--private")
    assert said.code == 0
    assert f"The model of job {job.id} will be made private" in said.out
    job = worker.store.get(job.id)
    assert "  access    to be made private\n" in run("status", job.id).out

    change = Change(delay=600, room_score=1.0)
    job = worker.store.transition(job, change, waiting_for=WaitReason.API_SLOT)
    waiting = "to be made private: waiting for an API call within the rate limit"
    assert f"  access    {waiting}\n" in run("status", job.id).out
    assert job.access is not None
    event = EventType.ACCESS
    job = worker.store.transition(job, Change(), event=event, waiting_for=None, access=job.access.granted())
    assert "  access    private\n" in run("status", job.id).out
    assert run("access", job.id, "--public", "--json").json["access"]["wanted"] == "public"
    job = worker.store.get(job.id)
    assert job.access is not None
    error = JobError(code="not_found", stage="access", message="Segmind does not know it.", action="Look at it.")
    job = worker.store.transition(job, Change(), event=event, access=job.access.refused(error))
    out = run("status", job.id).out
    assert "  access    private\n  refused   Segmind does not know it.\n  do        Look at it.\n" in out
    assert f"  event     {job.id}-6\n" in out  # the end's, not that of what came after
    lines = run("events", job.id).out.splitlines()
    assert [line.split("  ", 2)[2].strip() for line in lines if "Z  access" in line] == [
        "to be made private",
        "the model is private",
        "to be made public",
        "not changed: Segmind does not know it.",
    ]


def test_access_of_a_job_without_a_model(run: Run, worker: Worker) -> None:
    job = worker.accept()
    said = run("access", job.id, "--public")
    assert said.code == 7
    assert "has no training at Segmind" in said.err
    assert run("access", job.id).code == 2


def test_retry_goes_on_where_the_job_failed(run: Run, worker: Worker) -> None:
    job = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING))
    assert run("retry", job.id).out.startswith(f"Job {job.id} goes on with: downloading.\n")
    assert run("retry", job.id).code == ExitCode.CONFLICT


@pytest.mark.parametrize("command", ["cancel", "retry"])
def test_of_many_jobs_those_that_cannot_be_changed_stop_no_other(run: Run, worker: Worker, command: str) -> None:
    jobs = [worker.accept() for _ in range(2)]
    if command == "retry":
        jobs = [worker.fail(worker.bring(job, JobState.DOWNLOADING)) for job in jobs]
    ended = worker.bring(worker.accept(), JobState.SUCCEEDED)
    result = run(command, jobs[0].id, "no-such-job", ended.id, jobs[1].id)
    assert result.code == ExitCode.NOT_FOUND  # the first that went wrong
    assert [f"Job {job.id}" in result.out for job in [*jobs, ended]] == [True, True, False]
    unknown, impossible = result.err.splitlines()
    assert "no-such-job" in unknown
    assert ended.id in impossible
    expected = JobState.CANCELLED if command == "cancel" else JobState.DOWNLOADING
    assert [worker.store.get(job.id).state for job in jobs] == [expected] * 2


def test_many_jobs_as_json_are_a_document_each(run: Run, worker: Worker) -> None:
    jobs = [worker.accept() for _ in range(3)]
    ended = worker.bring(worker.accept(), JobState.SUCCEEDED)
    result = run("cancel", *(job.id for job in [*jobs, ended]), "--json")
    assert [found["job_id"] for found in result.json_lines] == [job.id for job in jobs]
    assert result.error["code"] == "not_possible"
    assert result.code == ExitCode.CONFLICT


def test_both_public_and_private_are_refused(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.SUCCEEDED)
    for both in (("--public", "--private"), ("--private", "--public"), ()):
        result = run("access", job.id, *both)
        assert result.code == ExitCode.USAGE
        assert "Say either --public or --private." in result.err
    assert worker.store.get(job.id).access is None
    needed = ("-d", "https://example.com/a.zip", "-n", "a", "-p", "1MAN", "-t", "1MAN")
    assert run("submit", *needed, "--public", "--private").code == ExitCode.USAGE
    for option, public in (("--public", True), ("--private", False)):
        assert run("submit", *needed, option, "--json").json["request"]["segmind_public"] is public

"""Staying with a job: ``submit --wait``, ``watch`` and ``events --follow`` as processes, without a terminal."""

import json
from pathlib import Path

import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import EventType, JobState
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import connect
from support.cli import Program, Run, Worker
from support.until import until


def states(lines: list[str]) -> list[str]:
    """The state that each plain line names, after its time in two words."""
    return [line.split()[2] for line in lines]


def test_watch_tells_everything_new_in_a_line(worker: Worker) -> None:
    job = worker.accept()
    with Program("watch", job.id) as watching:
        watching.expect("accepted")
        job = worker.bring(job, JobState.TRAINING)
        watching.expect("Segmind: REQUESTED")
        job = worker.note(job, event=EventType.PROGRESS, provider_status="DATA_PROCESSING")
        watching.expect("Segmind: DATA_PROCESSING")
        job = worker.progress(worker.bring(job, JobState.DOWNLOADING), 1_000_000, 4_000_000)
        watching.expect("1 MB of 4 MB")
        worker.bring(job, JobState.SUCCEEDED)
        result = watching.end()
    assert result.code == ExitCode.OK
    lines = result.out.splitlines()
    assert lines[0] == f"Job {job.id}"
    told = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("a-face"))]
    assert states(told) == [
        *("accepted", "uploading", "submitting", "training", "training", "downloading", "downloading", "succeeded")
    ]
    assert "  sha256    " + "ab" * 32 in lines
    assert result.err == ""


def test_watch_of_a_job_that_has_ended_says_how(run: Run, worker: Worker) -> None:
    failed = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING))
    result = run("watch", failed.id)
    assert result.code == ExitCode.FAILED
    assert "failed           The disk is full." in result.out
    assert f"again     finetune retry {failed.id}" in result.out


def test_a_cancelled_job_is_not_a_success(run: Run, worker: Worker) -> None:
    job = worker.move(worker.bring(worker.accept(), JobState.TRAINING), JobState.CANCELLED, waiting_for=None)
    result = run("watch", job.id)
    assert result.code == ExitCode.FAILED
    assert "Segmind's training continues and is still charged" in result.out


def test_watch_as_json_is_a_line_for_each_change(worker: Worker) -> None:
    job = worker.accept()
    with Program("watch", job.id, "--json") as watching:
        watching.expect('"state": "accepted"')
        job = worker.bring(job, JobState.TRAINING)
        watching.expect('"state": "training"')
        worker.bring(job, JobState.SUCCEEDED)
        result = watching.end()
    assert result.code == ExitCode.OK
    found = result.json_lines
    assert [found[0]["state"], found[-1]["state"]] == ["accepted", "succeeded"]
    assert len({json.dumps(line) for line in found}) == len(found)


def test_a_time_out_says_that_the_job_goes_on(run: Run, worker: Worker) -> None:
    job = worker.accept()
    result = run("watch", job.id, "--timeout", 0.1)
    assert result.code == ExitCode.TIMEOUT
    assert f"was still accepted after 0.1 s. The job goes on. Follow it: finetune watch {job.id}" in result.err


def test_a_time_out_does_not_say_that_a_job_goes_on_that_needs_a_person(worker: Worker) -> None:
    job = worker.accept()
    # The time begins when the program does, and has to be enough to see the job as it was.
    with Program("watch", job.id, "--timeout", 8) as text, Program("watch", job.id, "--timeout", 8, "--json") as lines:
        for watching in (text, lines):
            watching.expect("accepted")
        job = worker.bring(job, JobState.SUBMITTING)
        worker.move(job, JobState.NEEDS_ATTENTION, intent_ms=1, waiting_for=None)
        results = [watching.end() for watching in (text, lines)]
    for result in results:
        assert result.code == ExitCode.TIMEOUT
        assert "was still needs_attention after 8.0 s. It waits until a person says" in result.err
        assert f"finetune resolve {job.id} --resubmit" in result.err
        assert "goes on" not in result.err


def test_submit_and_wait_as_json_is_one_document_also_when_the_time_is_up(run: Run, worker: Worker) -> None:
    options = ("-d", "https://example.com/x.zip", "-n", "x", "-p", "a T", "-t", "T", "--wait", "--timeout", "0.1")
    result = run("submit", *options, "--json")
    [job] = worker.newest()
    assert result.code == ExitCode.TIMEOUT
    assert result.json["job_id"] == job.id
    assert result.error["job_id"] == job.id
    assert result.error["message"].count("goes on") == 1


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(run: Run, worker: Worker, seconds: str) -> None:
    result = run("watch", worker.accept().id, "--timeout", seconds)
    assert result.code == ExitCode.USAGE
    assert "'--timeout': should be a number of seconds, 0 or more" in result.err


def test_submit_and_wait_ends_with_the_job(worker: Worker) -> None:
    options = ("-d", "https://example.com/x.zip", "-n", "x", "-p", "a T", "-t", "T", "--wait")
    with Program("submit", *options, "--json") as waiting:
        job_id = _only_job(worker)
        worker.bring(worker.store.get(job_id), JobState.SUCCEEDED)
        result = waiting.end()
    assert result.code == ExitCode.OK
    assert result.json["weights"]["bytes"] == 4_194_304


def _only_job(worker: Worker) -> str:
    until(lambda: bool(worker.newest()), seconds=20)
    return worker.newest()[0].id


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_says_that_the_job_goes_on(worker: Worker, options: tuple[str, ...]) -> None:
    job = worker.accept()
    with Program("watch", job.id, *options) as watching:
        watching.expect("accepted")
        watching.interrupt()
        result = watching.end()
    assert result.code == ExitCode.INTERRUPTED
    assert f"The job goes on. Follow it: finetune watch {job.id}" in result.err
    assert "Traceback" not in result.err
    assert worker.store.get(job.id).state is JobState.ACCEPTED


def test_events_follow_to_the_end_of_the_job(worker: Worker) -> None:
    job = worker.accept()
    with Program("events", job.id, "--follow", "--json") as following:
        following.expect(f"{job.id}-1")
        worker.bring(job, JobState.SUCCEEDED)
        result = following.end()
    assert result.code == ExitCode.OK
    assert [event["id"] for event in result.json_lines] == [f"{job.id}-{number}" for number in range(1, 7)]


def test_watch_of_all_tells_every_change(worker: Worker) -> None:
    job = worker.accept(name="one")
    with Program("watch", "--json") as watching:
        watching.expect(job.id)
        worker.bring(job, JobState.TRAINING)
        watching.expect('"state": "training"')
        other = worker.accept(name="two")
        watching.expect(other.id)
        watching.interrupt()
        assert watching.end().code == ExitCode.INTERRUPTED


def test_a_redis_that_goes_away_is_waited_for(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        with connect(server.url) as client:
            worker = Worker(client)
            job = worker.bring(worker.accept(), JobState.TRAINING)
        with (
            Program("watch", job.id, FINETUNE_REDIS_URL=server.url) as watching,
            Program("events", job.id, "--follow", FINETUNE_REDIS_URL=server.url) as following,
        ):
            watching.expect("REQUESTED")
            following.expect("REQUESTED")
            server.stop()
            watching.expect("Still trying")
            following.expect_error("Still trying")
            server.start()
            with connect(server.url) as client:
                worker = Worker(client)
                worker.bring(worker.store.get(job.id), JobState.SUCCEEDED)
            assert watching.end().code == ExitCode.OK
            result = following.end()
    assert result.code == ExitCode.OK
    assert [line.split()[2] for line in result.out.splitlines()][-2:] == ["downloading", "succeeded"]

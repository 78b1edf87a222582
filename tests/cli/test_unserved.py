"""An account that was taken out of the workers' settings, or renamed there: its jobs are not left in silence."""

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_queue import __version__
from finetune_queue.contract import JobState, WaitReason
from finetune_queue.store import AccountLimits, LiveWorker, Workers, connect, keys
from support.cli import Program, Run, Worker

NO_KEY = "no running worker has its account's key"


@pytest.fixture
def workers(worker: Worker, queue_url: str) -> Iterator[Workers]:
    """The workers that are there, none of which answers; the one of the fixture before has signed off."""
    with connect(queue_url) as client:
        Workers(client).left(LiveWorker("worker1@here", __version__))
        yield Workers(client)


def account(run: Run) -> Any:
    return next(check for check in run("doctor", "--json").json["checks"] if check["name"] == "account default")


def test_its_jobs_say_so_in_place_of_another_reason(run: Run, worker: Worker, workers: Workers) -> None:
    worker.accounts.configure("default", AccountLimits(calls=5, window=60.0, max_submits_per_day=0))
    parked = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.API_SLOT, score=1)
    training = worker.bring(worker.accept(), JobState.TRAINING)

    workers.seen(LiveWorker("host-a:1", __version__, ("other",)))
    for job in (parked, training):
        assert NO_KEY in run("status", job.id).out
        assert run("status", job.id, "--json").json["waiting"]["unserved"] is True
    listed = run("list").out
    assert listed.count(NO_KEY) == 2
    assert "submits left" not in listed
    found = account(run)
    assert found["status"] == "warn"
    assert found["message"] == "no running worker has the key of account default: its 2 jobs wait"
    assert "SEGMIND_ACCOUNTS again, or cancel them" in found["action"]

    workers.seen(LiveWorker("host-b:1", __version__, ("default", "other")))
    assert NO_KEY not in run("list").out
    assert account(run)["message"].startswith("its workers are set to submit nothing")


def test_no_alarm_without_jobs_or_workers_or_beside_one_that_does_not_say(
    run: Run, worker: Worker, workers: Workers
) -> None:
    worker.announce()
    workers.seen(LiveWorker("host-a:1", __version__, ("other",)))
    assert account(run)["status"] == "ok"
    job = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.API_SLOT, score=1)
    assert account(run)["status"] == "warn"
    workers.seen(LiveWorker("host-b:1", "0.0.9"))  # of a version that announces no accounts
    assert account(run)["status"] == "ok"
    assert NO_KEY not in run("status", job.id).out
    for each in workers.alive():
        workers.left(each)
    assert account(run)["status"] == "ok"  # that nobody is there, another line says
    assert NO_KEY not in run("status", job.id).out


def test_its_old_trouble_is_none_when_no_job_needs_it(
    run: Run, worker: Worker, workers: Workers, queue_url: str
) -> None:
    worker.announce()
    with connect(queue_url) as client:
        client.hset(keys.account("default"), mapping={"probing": "1", "pause_reason": "Segmind does not know the key."})
    assert account(run)["status"] == "warn"
    workers.seen(LiveWorker("host-a:1", __version__, ("other",)))
    found = account(run)
    assert (found["status"], found["message"]) == ("ok", "no running worker has its key, and no job needs one")


def test_a_list_of_jobs_says_once_that_no_worker_runs(run: Run, worker: Worker, workers: Workers) -> None:
    ended = worker.bring(worker.accept(name="ended"), JobState.SUCCEEDED)
    assert run("list").err == ""  # nothing waits
    worker.accept(name="waiting")
    listed = run("list")
    assert listed.err.strip() == "No worker is running: jobs wait until one is started."
    assert listed.out.count(ended.id) == 1
    assert run("list", "--json").err == ""

    workers.seen(LiveWorker("host-a:1", __version__))
    assert run("list").err == ""


@pytest.mark.usefixtures("workers")
def test_a_watch_of_all_says_it_too(worker: Worker) -> None:
    worker.accept(name="waiting")
    with Program("watch") as watching:
        watching.expect("waiting")
        watching.expect_error("No worker is running")

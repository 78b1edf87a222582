"""What an autoscaler is told: what can run now, and nothing that only waits."""

from typing import Any

import httpx
import pytest

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason, new_job_id
from finetune_queue.messaging import BEGIN, CALL, CONTINUE, Messenger, producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import CallClass, Change, JobStore, room_score
from gateway.serving import MakeSettings, Start
from support.samples import sample, sample_request

PATH = [JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING]


def load(http: httpx.Client) -> dict[str, Any]:
    reply = http.get("/v1/load")
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def row(queued: int = 0, running: int = 0, due: int = 0) -> dict[str, int]:
    return {"queued": queued, "running": running, "due": due, "total": queued + running + due}


class Jobs:
    """Brings jobs, which have no messages, to where a stage would leave them."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    def bring(self, state: JobState) -> JobRecord:
        job, _ = self.store.register(new_job_id(), sample_request(), delay=60)
        for step in PATH[: PATH.index(state) + 1]:
            job = self.store.transition(job, Change(delay=60), to=step)
        return job

    def run(self, state: JobState) -> JobRecord:
        return self.store.transition(self.bring(state), Change(delay=30), owner="a-task")

    def park(
        self, state: JobState, reason: WaitReason, delay: float = 3600, call: CallClass | None = None
    ) -> JobRecord:
        job = self.bring(state)
        score = None if call is None else room_score(call, job)
        transfer = reason is WaitReason.TRANSFER
        change = Change(delay=delay, room_score=score, for_transfer=transfer)
        return self.store.transition(job, change, waiting_for=reason)


@pytest.fixture
def jobs(queue: FineTuneQueue) -> Jobs:
    return Jobs(queue._jobs)


def test_an_idle_queue(http: httpx.Client) -> None:
    assert load(http) == {"short": row(), "transfers": row()}


def test_a_burst_of_requests_and_started_chains_of_all_priorities(
    http: httpx.Client, queue: FineTuneQueue, settings: Settings
) -> None:
    list(queue.submit_many([sample() for _ in range(500)]))
    messenger = Messenger(producer_app(settings))
    for priority in (CALL, CONTINUE, BEGIN):
        messenger.start(new_job_id(), Stage.UPLOAD.and_after(), priority=priority)
        messenger.start(new_job_id(), Stage.SUBMIT.and_after(), priority=priority)
    # The upload with a call slot is first to ask for its URL, which is short.
    assert load(http) == {"short": row(queued=504), "transfers": row(queued=2)}


def test_stages_that_run_until_they_let_go(http: httpx.Client, jobs: Jobs) -> None:
    running = [jobs.run(state) for state in (JobState.UPLOADING, JobState.SUBMITTING, JobState.DOWNLOADING)]
    assert load(http) == {"short": row(running=1), "transfers": row(running=2)}
    for job in running:
        jobs.store.transition(job, Change(delay=60), owner="")
    assert load(http) == {"short": row(), "transfers": row()}


@pytest.mark.usefixtures("account")
def test_what_waits_for_something_else_is_no_work(http: httpx.Client, jobs: Jobs) -> None:
    jobs.park(JobState.UPLOADING, WaitReason.API_SLOT, call=CallClass.PREPARE)
    jobs.park(JobState.SUBMITTING, WaitReason.API_SLOT, call=CallClass.SUBMIT)
    jobs.park(JobState.SUBMITTING, WaitReason.SPENDING, call=CallClass.SUBMIT)
    jobs.park(JobState.SUBMITTING, WaitReason.TRAININGS, call=CallClass.SUBMIT)
    jobs.park(JobState.SUBMITTING, WaitReason.PAUSED, delay=5, call=CallClass.SUBMIT)
    jobs.park(JobState.TRAINING, WaitReason.PROVIDER, delay=5)
    jobs.park(JobState.DOWNLOADING, WaitReason.TRANSFER, delay=5, call=CallClass.FINISH)
    assert load(http) == {"short": row(), "transfers": row()}


def test_retries_that_are_due_soon(http: httpx.Client, jobs: Jobs) -> None:
    jobs.park(JobState.SUBMITTING, WaitReason.BACKOFF, delay=5)
    jobs.park(JobState.DOWNLOADING, WaitReason.BACKOFF, delay=0)
    jobs.park(JobState.DOWNLOADING, WaitReason.BACKOFF, delay=5)
    jobs.park(JobState.DOWNLOADING, WaitReason.BACKOFF, delay=300)
    assert load(http) == {"short": row(due=1), "transfers": row(due=2)}


def test_a_job_that_was_sent_for_later_when_its_time_comes(http: httpx.Client, jobs: Jobs) -> None:
    for delay in (5, 300):
        job, _ = jobs.store.register(new_job_id(), sample_request(), delay=delay)
        jobs.store.transition(job, Change(delay=delay), waiting_for=WaitReason.START)
    assert load(http) == {"short": row(), "transfers": row(due=1)}


def test_more_workers_end_no_outage(http: httpx.Client, jobs: Jobs) -> None:
    job = jobs.park(JobState.UPLOADING, WaitReason.BACKOFF, delay=5)
    jobs.store.transition(job, Change(delay=5), outages=1)
    assert load(http) == {"short": row(), "transfers": row()}


def test_without_redis_there_is_no_number(make_settings: MakeSettings, start: Start) -> None:
    url = start(make_settings(finetune_redis_url="redis://127.0.0.1:1/0", finetune_gateway_tokens={}))
    reply = httpx.get(f"{url}/v1/load", trust_env=False, timeout=30)
    assert reply.status_code == 503
    assert reply.json()["code"] == "queue-unavailable"

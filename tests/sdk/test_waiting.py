"""What the SDK says of a job that does not move because no worker moves it."""

import pytest

from finetune_queue import Event, FineTuneQueue, QueueUnavailableError, UnknownJobError, WaitTimeoutError, __version__
from finetune_queue.contract import JobState, WaitReason
from finetune_queue.sdk import Waiting, waiting
from finetune_queue.store import LiveWorker, Workers, connect
from support.cli import Worker
from support.samples import sample


def start_worker(redis_url: str) -> None:
    with connect(redis_url) as client:
        Workers(client).seen(LiveWorker("worker1@here", __version__))


def test_without_a_worker_it_says_so_at_once(queue: FineTuneQueue) -> None:
    job = queue.submit(sample())
    assert queue.waiting(job) == Waiting(WaitReason.WORKER, 0, None, no_worker=True)
    with pytest.raises(WaitTimeoutError, match=r"No worker is running: it waits until one is started\.$"):
        job.wait(0)


def test_a_job_that_no_worker_has_picked_up_says_so_after_a_while(
    queue: FineTuneQueue, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_worker(redis_url)
    job = queue.submit(sample())
    monkeypatch.setattr(waiting, "TAKEN_UP", 60.0)
    assert queue.waiting(job) is None
    with pytest.raises(WaitTimeoutError, match=r"It goes on\.$"):
        job.wait(0)
    monkeypatch.setattr(waiting, "TAKEN_UP", -60.0)
    assert queue.waiting(job) == Waiting(WaitReason.WORKER, 0, None)
    with pytest.raises(WaitTimeoutError, match=r"No worker has picked it up yet\.$"):
        job.wait(0)


def test_another_reason_stays_and_says_that_no_worker_runs(queue: FineTuneQueue, worker: Worker) -> None:
    job = worker.park(worker.bring(worker.accept(), JobState.SUBMITTING), WaitReason.API_SLOT, score=1)
    found = queue.waiting(queue.get(job.id))
    assert found is not None
    assert (found.reason, found.no_worker) == (WaitReason.API_SLOT, True)


def test_what_on_event_raises_is_not_taken_for_an_outage(queue: FineTuneQueue, worker: Worker) -> None:
    job = queue.get(worker.bring(worker.accept(), JobState.SUCCEEDED).id)

    def on_event(_event: Event) -> None:
        message = "another queue is out of reach"
        raise QueueUnavailableError(message)

    with pytest.raises(QueueUnavailableError, match="another queue"):
        job.wait(5, on_event)


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.NEEDS_ATTENTION])
def test_what_waits_for_no_worker_does_not_say_so(queue: FineTuneQueue, worker: Worker, state: JobState) -> None:
    job = worker.bring(worker.accept(), JobState.SUBMITTING)
    job = worker.move(job, state, intent_ms=1) if state is JobState.NEEDS_ATTENTION else worker.bring(job, state)
    assert queue.waiting(queue.get(job.id)) is None


def test_a_job_is_named_by_itself_or_by_its_id(queue: FineTuneQueue) -> None:
    job = queue.submit(sample(reply_to=["list://x"]))
    for name in (job, job.id, f" {job.id.upper()} "):
        assert queue.waiting(name) == Waiting(WaitReason.WORKER, 0, None, no_worker=True)
        assert queue.deliveries(name) == queue.deliveries(job.id)
        assert queue.undelivered(name) == queue.undelivered(job.id)
    with pytest.raises(UnknownJobError):
        queue.waiting("x")

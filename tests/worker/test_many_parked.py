"""Thousands of jobs that wait: a worker has a hundred of them in hand at a time, a look a page of its trainings."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from finetune_queue.contract import JobRecord, JobState, WaitReason, new_job_id
from finetune_queue.store import AccountLimits, CallClass, Change, keys, room_score
from finetune_worker.dispatcher import BATCH, Dispatcher
from finetune_worker.segmind.models import FinetuneItem
from support.bench import Bench, sweep
from support.samples import sample_request

JOBS = 5_000
TRAININGS = 2_000

MOST = 3_000_000
"""Bytes; the records of all of them together take some nine times as much."""

MOST_OF_A_LOOK = 4_000_000
"""Bytes for a look at the trainings; with their whole records it would be 18 million, with all items of the list 4.6
million."""


def park(bench: Bench, count: int = JOBS, *, account: str = "default", due_in: float = 0.0) -> list[JobRecord]:
    """Let the jobs wait in their account's room for calls, with deadlines in so many seconds."""
    jobs, parked = bench.container.jobs, []
    request = sample_request(account=account)
    for outcome in jobs.register_many([(new_job_id(), request) for _ in range(count)], delay=60):
        assert isinstance(outcome, tuple)
        job, _ = outcome
        change = Change(delay=due_in, room_score=room_score(CallClass.PREPARE, job))
        parked.append(jobs.transition(job, change, to=JobState.UPLOADING, waiting_for=WaitReason.API_SLOT))
    return parked


def test_what_a_worker_needs_does_not_grow_with_the_jobs_that_wait(bench: Bench) -> None:
    training = bench.submitting()
    bench.run(training)
    bench.until_trained()
    dispatcher = Dispatcher(bench.container)
    dispatcher.step()  # which imports what it needs
    park(bench)

    tracemalloc.start()
    try:
        while dispatcher.step() == 0.0:
            pass
        said = sweep(bench.container, "default")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert said == "saw 1 of 1 trainings, 1 moved"
    client = bench.container.jobs._redis
    assert client.zcount(keys.deadlines(), 0, bench.container.deadlines.now_ms()) == 0
    assert client.zcard(keys.room("default")) > JOBS - 100, "as many as there are call slots went on"
    assert most < MOST


def test_more_free_slots_than_are_handed_out_at_once_are_all_used_without_a_pause(bench: Bench) -> None:
    dispatcher = Dispatcher(bench.container)
    dispatcher.step()
    bench.container.accounts.configure("default", AccountLimits(calls=5 * BATCH, window=60.0))
    park(bench, 2 * BATCH + 1, due_in=60.0)
    assert [dispatcher.step() == 0.0 for _ in range(3)] == [True, True, False]
    assert bench.container.accounts.status("default").waiting == 0


def test_one_account_s_backlog_delays_no_other_s_job(bench: Bench) -> None:
    """All of it is due as well, and gets more slots than a dispatcher hands out at once."""
    dispatcher = Dispatcher(bench.container)
    dispatcher.step()  # which sets the limit that is in the settings
    for account, calls in ("default", 5 * BATCH), ("other", 1):
        bench.container.accounts.configure(account, AccountLimits(calls=calls, window=60.0))
    waiting = park(bench, 3 * BATCH)
    [job] = park(bench, 1, account="other")
    dispatcher.step()
    assert bench.container.accounts.place(waiting[-1]) == 2 * BATCH - 1
    assert bench.container.accounts.place(job) is None, "its call slot is free, and it was not started"


class ManyTrainings:
    """An API whose list shows a training for each job, and as many others: new items each time, as read from a body."""

    complete, skipped = True, 0

    def __init__(self, jobs: list[str]) -> None:
        self._jobs = jobs

    @contextmanager
    def list_finetunes(self) -> Iterator[Self]:
        yield self

    def __iter__(self) -> Iterator[FinetuneItem]:
        for job_id in self._jobs:
            for finetune_id in (job_id, f"not-{job_id}"):
                yield FinetuneItem(finetune_id=finetune_id, status="TRAINING_INITIATED")

    def close(self) -> None:
        """Has nothing to close."""


def put_in_training(bench: Bench) -> list[str]:
    """Return jobs that are in training, and wait for it; each record a few kilobytes long."""
    wordy = sample_request(labels={f"label-{number}": "x" * 200 for number in range(10)})
    outcomes = bench.container.jobs.register_many([(new_job_id(), wordy) for _ in range(TRAININGS)], delay=60)
    ids = [outcome[0].id for outcome in outcomes if isinstance(outcome, tuple)]
    pipe = bench.container.jobs._redis.pipeline(transaction=False)
    for job_id in ids:
        pipe.hset(keys.job(job_id), mapping={"state": "training", "waiting_for": "provider", "finetune_id": job_id})
        pipe.hset(keys.job(job_id), "provider_status", "TRAINING_INITIATED")
        pipe.zadd(keys.tracked("default"), {job_id: 1})
    pipe.execute()
    return ids


def test_what_a_look_needs_hardly_grows_with_the_trainings_that_it_sees(bench: Bench) -> None:
    ids = put_in_training(bench)
    bench.container._clients["default"] = ManyTrainings(ids)  # type: ignore[assignment]
    sweep(bench.container, "default")  # which imports what it needs

    tracemalloc.start()
    try:
        said = sweep(bench.container, "default")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert said == f"saw {TRAININGS} of {TRAININGS} trainings, 0 moved"
    assert most < MOST_OF_A_LOOK

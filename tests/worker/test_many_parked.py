"""Thousands of jobs that wait, all of them due to be looked at: a worker has a hundred of them in hand at a time."""

import tracemalloc

from finetune_queue.contract import JobState, WaitReason, new_job_id
from finetune_queue.store import CallClass, Change, keys, room_score
from finetune_worker.dispatcher import Dispatcher
from support.bench import Bench, sweep
from support.samples import sample_request

JOBS = 5_000

MOST = 3_000_000
"""Bytes; the records of all of them together take some nine times as much."""


def park(bench: Bench) -> None:
    """Let the jobs wait in their account's room for calls, their deadlines passed."""
    jobs = bench.container.jobs
    for outcome in jobs.register_many([(new_job_id(), sample_request()) for _ in range(JOBS)], delay=60):
        assert isinstance(outcome, tuple)
        job, _ = outcome
        change = Change(delay=0, room_score=room_score(CallClass.PREPARE, job))
        jobs.transition(job, change, to=JobState.UPLOADING, waiting_for=WaitReason.API_SLOT)


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

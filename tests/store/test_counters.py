"""Counters: many processes, one truth; and who is there."""

import re
import threading
import time
from pathlib import Path

import pytest
import redis

from finetune_queue.contract import JobError, JobState, Stage, new_job_id
from finetune_queue.store import (
    API_CALLS,
    COUNTED,
    STAGE_SECONDS,
    TRANSFERRED_BYTES,
    Change,
    Counted,
    Counters,
    JobStore,
    LiveWorker,
    Overview,
    RedisError,
    Workers,
    connect,
    keys,
)
from finetune_queue.store.counters import JOBS_ENTERED, JOBS_FAILED
from finetune_queue.store.workers import GONE
from support.samples import sample_request
from support.until import until


def value(client: redis.Redis, metric: object, *labels: str) -> float:
    return Counters(client).read()[metric][labels].value  # type: ignore[index]


def test_what_many_threads_of_many_processes_count_is_summed(client: redis.Redis) -> None:
    processes = [Counters(client) for _ in range(3)]

    def count(counters: Counters) -> None:
        for _ in range(200):
            counters.add(API_CALLS, "default", "list", "ok")

    threads = [threading.Thread(target=count, args=(each,)) for each in processes for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in processes:
        each.send()

    assert value(client, API_CALLS, "default", "list", "ok") == 1200


def test_what_was_counted_is_sent_by_itself_and_an_idle_process_sends_nothing(client: redis.Redis) -> None:
    counters = Counters(client)
    assert counters._timer is None
    counters.add(TRANSFERRED_BYTES, "upload", by=5_000_000_000)
    until(lambda: value(client, TRANSFERRED_BYTES, "upload") == 5_000_000_000, seconds=30)
    assert counters._timer is None


def test_a_moment_without_threads_does_not_end_the_counting(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as Python says when the system refuses one

    counters = Counters(client)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        counters.add(TRANSFERRED_BYTES, "upload", by=3)
    counters.add(TRANSFERRED_BYTES, "upload", by=4)
    until(lambda: value(client, TRANSFERRED_BYTES, "upload") == 7, seconds=30)


def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_pass(client: redis.Redis) -> None:
    counters = Counters(client)
    for seconds in (0.25, 0.26, 90_000.0):
        counters.observe(STAGE_SECONDS, Stage.UPLOAD, "done", seconds=seconds)
    counters.send()
    found = counters.read()[STAGE_SECONDS]["upload", "done"]
    assert found == Counted(90_000.51, {0.25: 1, 1.0: 1, float("inf"): 1})


def test_what_could_not_be_sent_is_kept(client: redis.Redis) -> None:
    counters = Counters(connect("redis://127.0.0.1:1/0"))
    counters.add(API_CALLS, "default", "list", "ok")
    counters.send()
    counters.add(API_CALLS, "default", "list", "ok")
    counters._redis = client
    counters.send()
    assert value(client, API_CALLS, "default", "list", "ok") == 2


def test_a_store_that_cannot_be_read_is_no_row_of_zeros() -> None:
    with pytest.raises(RedisError):
        Counters(connect("redis://127.0.0.1:1/0")).read()


def test_labels_that_a_metric_does_not_have_are_refused(client: redis.Redis) -> None:
    with pytest.raises(ValueError, match="account"):
        Counters(client).add(API_CALLS, "default")


def test_fields_of_another_version_hurt_nobody(client: redis.Redis) -> None:
    client.hset(keys.counters(), "finetune_something_new_total|a|b", "7")
    assert set(Counters(client).read()) == set(COUNTED)


def test_each_change_of_state_is_counted_whoever_makes_it(client: redis.Redis, jobs: JobStore) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
    job = jobs.transition(job, Change(delay=60), waiting_for="api-slot")
    error = JobError(code="dataset_rejected", stage=Stage.UPLOAD, message="No.", action="Mend it.")
    jobs.transition(job, Change(), to=JobState.FAILED, error=error, failed_stage=Stage.UPLOAD)

    found = Counters(client).read()
    assert {state: each.value for (state,), each in found[JOBS_ENTERED].items() if each.value} == {
        "accepted": 1,
        "uploading": 1,
        "failed": 1,
    }
    assert found[JOBS_FAILED]["dataset_rejected",].value == 1


def test_each_code_of_a_failed_job_that_is_shown_before_its_first_is_the_code_of_an_error() -> None:
    root = Path(__file__).parents[2]
    sources = [*(root / "worker").rglob("*.py"), *(root / "producers" / "finetune_queue" / "storage").glob("*.py")]
    said = {word for source in sources for word in re.findall(r'"([a-z_]+)"', source.read_text())}
    assert {code for (code,) in JOBS_FAILED.zeros} - said == set()


def test_a_write_that_is_refused_is_not_counted(client: redis.Redis, jobs: JobStore) -> None:
    request, job_id = sample_request(), new_job_id()
    jobs.register(job_id, request, delay=60)
    jobs.register(job_id, request, delay=60)
    assert value(client, JOBS_ENTERED, "accepted") == 1


def test_running_are_the_jobs_that_a_worker_holds_as_long_as_its_lease(client: redis.Redis, jobs: JobStore) -> None:
    def running() -> dict[JobState, int]:
        return {view.state: view.running for view in Overview(client).look().states if view.running}

    job, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
    assert running() == {}
    job = jobs.transition(job, Change(delay=60), owner="a worker")
    job = jobs.transition(job, Change(delay=60), attempts=1)
    assert running() == {JobState.UPLOADING: 1}
    released = jobs.transition(job, Change(delay=60), to=JobState.SUBMITTING, owner="")
    assert running() == {}
    jobs.transition(released, Change(delay=0.05), owner="a worker that dies")
    until(lambda: running() == {}, seconds=30)


def test_workers_are_those_that_were_seen_lately(client: redis.Redis) -> None:
    workers = Workers(client)
    one, two = LiveWorker("one", "1.0", ("big", "small")), LiveWorker("two", "1.1", ("big",), clock_off=-7200)
    workers.seen(one)
    workers.seen(one)
    workers.seen(two)
    client.zadd(keys.workers(), {"1.0 dead": (time.time() - GONE - 1) * 1000})
    assert workers.alive() == [one, two]
    workers.left(one)
    assert workers.alive() == [two]
    # A version that knows of no clocks takes that for one more account, of a name that none can have.
    assert two.member == "1.1 two big clock=-7200"
    assert [worker.name for worker in workers.not_forgotten()] == ["dead", "two"]
    workers.forget_gone()
    assert workers.not_forgotten() == [two]

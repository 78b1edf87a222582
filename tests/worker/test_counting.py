"""What a worker counts while it works."""

from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState
from finetune_queue.store import (
    API_CALL_SECONDS,
    API_CALLS,
    JOB_SECONDS,
    LOST_MESSAGES,
    STAGE_SECONDS,
    TAKEOVERS,
    TRANSFERRED_BYTES,
    UNKNOWN_STATUSES,
    AccountStatus,
    Change,
    Counted,
    Metric,
    keys,
)
from finetune_worker.dispatcher import Dispatcher
from support.bench import Bench, sweep
from support.until import until


def counted(bench: Bench, metric: Metric) -> dict[tuple[str, ...], Counted]:
    bench.container.counters.send()
    found: dict[tuple[str, ...], Counted] = bench.container.counters.read()[metric]
    return found


def status(bench: Bench) -> AccountStatus:
    found: AccountStatus = bench.container.accounts.status("default")
    return found


def downloaded(bench: Bench) -> JobRecord:
    job = bench.submitting()
    bench.run(job)
    bench.until_trained()
    sweep(bench.container, "default")
    bench.run(job)
    return bench.container.jobs.get(job.id)


def test_a_job_s_stages_calls_bytes_and_time(bench: Bench) -> None:
    job = downloaded(bench)
    bench.run(job)
    assert bench.read(job).state is JobState.SUCCEEDED

    stages = {labels: sum(each.buckets.values()) for labels, each in counted(bench, STAGE_SECONDS).items()}
    assert stages == {("submit", "done"): 1, ("download", "done"): 1, ("publish", "done"): 1}
    calls = {labels: each.value for labels, each in counted(bench, API_CALLS).items()}
    operations = ("presign_upload", "submit", "details")
    expected = {("default", operation, "ok"): 1 for operation in operations}
    # A rate has to see the first of them.
    assert calls == expected | {("default", operation, "rate_limited"): 0 for operation in operations}
    assert sum(counted(bench, API_CALL_SECONDS)["submit",].buckets.values()) == 1
    assert counted(bench, TRANSFERRED_BYTES)["download",].value == 65536
    assert sum(counted(bench, JOB_SECONDS)["succeeded",].buckets.values()) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "http_error", "status": 401}, "api_key_rejected"),
        ({"kind": "http_error", "status": 402}, "credits_exhausted"),
        ({"kind": "http_error", "status": 406}, "credits_exhausted"),
        ({"kind": "rate_limited"}, "rate_limited"),
        ({"kind": "http_error", "status": 503}, "server_error"),
    ],
)
def test_an_account_is_unwell_until_a_call_goes_well(bench: Bench, fault: dict[str, Any], code: str) -> None:
    job = bench.submitting()
    bench.sandbox.control.add_fault(op="submit", **fault)
    bench.run(job)
    assert status(bench).unwell == code
    assert counted(bench, API_CALLS)["default", "submit", code].value == 1

    for pause in ("paused_until", "submits_paused_until"):
        bench.container.jobs._redis.hset(keys.account("default"), pause, "0")
    assert status(bench).unwell == code, "only a call shows that it is well again"
    bench.submitting()
    bench.run(bench.submitting())
    assert status(bench).unwell == ""


def test_an_unknown_training_does_not_show_that_the_account_is_well(bench: Bench) -> None:
    """At an address that is not the API's, each is unknown."""
    [job] = bench.trained(1)
    bench.container.jobs.transition(bench.read(job), Change(delay=60), wants_details=True)
    bench.container.jobs._redis.hset(
        keys.account("default"), mapping={"probing": "1", "pause_code": "wrong_address", "failures": "3"}
    )
    bench.sandbox.control.add_fault(op="details", kind="http_error", status=404)
    bench.run(job)
    assert bench.error(job).code == "not_found"
    assert status(bench).unwell == "wrong_address"
    bench.run(job)
    assert status(bench).unwell == ""


def test_time_without_a_look_counts_from_the_last_sweep_that_saw_something(bench: Bench) -> None:
    assert status(bench).unlooked is None
    client, job = bench.container.jobs._redis, bench.submitting()
    bench.sandbox.control.change_settings(training_seconds=60)
    bench.run(job)
    client.zadd(keys.tracked("default"), {job.id: client.time()[0] * 1000 - 100_000})
    assert status(bench).unlooked == pytest.approx(100, abs=5)
    bench.sandbox.control.add_fault(op="details", kind="http_error", status=503)
    sweep(bench.container, "default")
    assert status(bench).unlooked == pytest.approx(100, abs=5)
    client.hset(keys.account("default"), "paused_until", "0")
    client.hset(keys.account("default"), "probe_until", "0")
    sweep(bench.container, "default")
    assert status(bench).unlooked == pytest.approx(0, abs=5)


def test_a_status_that_nobody_documented(bench: Bench) -> None:
    job = bench.submitting()
    bench.sandbox.control.change_settings(training_seconds=5)
    bench.run(job)
    bench.sandbox.control.change_training(bench.finetune_id(job), status_word="WARMING_UP")
    until(lambda: bench.sandbox.control.trainings()[0]["status"] == "WARMING_UP", seconds=30)
    sweep(bench.container, "default")
    sweep(bench.container, "default")
    assert counted(bench, UNKNOWN_STATUSES)[()].value == 1


def test_takeovers_and_lost_messages(bench: Bench) -> None:
    jobs, client, dispatcher = bench.container.jobs, bench.container.jobs._redis, Dispatcher(bench.container)
    held = jobs.transition(bench.job(), Change(delay=0), to=JobState.UPLOADING, owner="a worker that died")
    unsent = bench.job()
    parked = jobs.transition(bench.job(), Change(delay=0), to=JobState.UPLOADING, waiting_for="backoff")
    now = client.time()[0] * 1000
    for job in (held, unsent, parked):
        client.hset(keys.job(job.id), "updated_ms", now - 60_000)
        client.zadd(keys.deadlines(), {job.id: now - 1})

    dispatcher.step()

    bench.container.messenger._app.close()
    assert counted(bench, TAKEOVERS)[()].value == 1
    assert counted(bench, LOST_MESSAGES)[()].value == 1
    assert bench.container.workers.alive() == [bench.container.presence.me]
    bench.container.sign_off()
    assert bench.container.workers.alive() == []

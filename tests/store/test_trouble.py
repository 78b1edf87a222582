"""A server that refuses writes: nothing is half done, and what frees memory still works."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import RedisError

from finetune_queue.contract import JobState, new_job_id
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    Budget,
    Change,
    JobNotFoundError,
    JobStore,
    NoSlot,
    NotDurableError,
    Retention,
    Slot,
    connect,
    keys,
)
from support.full import full
from support.samples import sample_request
from support.switch import Switch
from support.until import until


@contextmanager
def read_only(client: Any) -> Iterator[None]:
    """Make the server a replica of one that is not there."""
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


def everything(client: Any) -> dict[str, bytes]:
    return {key: client.execute_command("DUMP", key, NEVER_DECODE=True) for key in sorted(client.scan_iter())}


@pytest.mark.parametrize("refusing", [full, read_only])
def test_a_change_that_the_server_has_no_room_for_is_not_made_in_part(
    jobs: JobStore, client: Any, refusing: Any
) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = jobs.transition(job, Change(delay=15, room_score=1.0), intent_ms=7, waiting_for="api-slot")
    before = everything(client)

    with refusing(client), pytest.raises(RedisError):
        # What it would do first, deleting, takes no memory and so would not be refused by itself.
        jobs.transition(job, Change(delay=60), intent_ms=None, waiting_for=None, attempts=1)

    assert everything(client) == before
    assert jobs.transition(job, Change(delay=60), intent_ms=None).intent_ms is None


def test_a_full_server_grants_no_slot_and_keeps_those_that_are_reserved(client: Any, budget: Budget) -> None:
    client.zadd(keys.slots("default"), {"reserved:job-1": 9e12})
    with full(client), pytest.raises(RedisError):
        budget.take("default", "job-1", 0.0)
    assert client.zcard(keys.slots("default")) == 1


def test_jobs_whose_time_is_over_leave_a_full_server(client: Any) -> None:
    jobs = JobStore(client)
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    jobs.transition(job, Change(), to=JobState.CANCELLED)
    with full(client):
        assert Retention(client, -2).forget_finished() == 1
        with pytest.raises(JobNotFoundError):
            jobs.get(job.id)


def test_slots_in_use_still_count_after_a_restart(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "one") as server, connect(server.url) as client:
        Accounts(client).configure("default", AccountLimits(calls=1, window=600))
        budget = Budget(client, call_timeout=5, handover=1, first_sweep=10, backoff_base=1, backoff_max=8)
        call = budget.take("default", "job-1", 0.0)
        assert isinstance(call, Slot)
        budget.end(call)
        client.waitaof(1, 0, 5000)
        server.kill()
        server.restart()

        assert isinstance(budget.take("default", "job-2", 0.0), NoSlot)


def test_after_a_failover_behind_one_name_the_new_primary_is_found(tmp_path: Path) -> None:
    with (
        ValkeyServer(tmp_path / "one") as one,
        ValkeyServer(tmp_path / "two") as two,
        Switch(one.port) as switch,
        connect(f"redis://127.0.0.1:{switch.port}/0") as client,
        redis.Redis(port=one.port) as first,
        redis.Redis(port=two.port) as second,
    ):
        jobs = JobStore(client)
        job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
        first.config_set("repl-diskless-sync-delay", 0)  # or it waits 5 s for more replicas
        second.replicaof("127.0.0.1", one.port)
        until(lambda: second.exists(keys.job(job.id)) == 1, seconds=20)
        second.replicaof("NO", "ONE")
        first.replicaof("127.0.0.1", two.port)
        switch.target = two.port

        with pytest.raises(redis.ReadOnlyError):  # what still goes to the old one is refused
            jobs.transition(job, Change(delay=15), attempts=1)

        assert jobs.transition(job, Change(delay=15), attempts=1).attempts == 1
        assert second.hget(keys.job(job.id), "attempts") == b"1"


def test_a_server_that_does_not_answer_is_given_up_and_sent_nothing_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        started = time.monotonic()
        with connect(url, read_timeout=0.2) as client, pytest.raises(RedisError):
            client.incr("what was written perhaps")
        assert time.monotonic() - started < 3
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_where_replicas_are_to_have_a_write_it_is_durable_only_with_them(tmp_path: Path) -> None:
    """A failover to one of them then forgets nothing that was sent after it."""
    with (
        ValkeyServer(tmp_path / "one") as one,
        ValkeyServer(tmp_path / "two") as two,
        connect(one.url) as client,
        redis.Redis(port=two.port) as second,
    ):
        jobs = JobStore(client, replicas=1)
        job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
        with pytest.raises(NotDurableError) as alone:
            jobs.transition(job, Change(delay=15), intent_ms=1, durable_within=0.2)
        job = alone.value.job
        client.config_set("repl-diskless-sync-delay", 0)  # or it waits 5 s for more replicas
        second.replicaof("127.0.0.1", one.port)
        until(lambda: second.exists(keys.job(job.id)) == 1, seconds=20)

        job = jobs.transition(job, Change(delay=15), intent_ms=2, durable_within=20.0)

        one.kill()
        assert second.hget(keys.job(job.id), "intent_ms") == b"2"


def test_a_server_without_a_log_confirms_no_replica_s_either(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "one") as server, connect(server.url) as client:
        client.config_set("appendonly", "no")
        jobs = JobStore(client, replicas=1)
        job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
        with pytest.raises(NotDurableError):
            jobs.transition(job, Change(delay=15), intent_ms=1, durable_within=0.2)


def test_a_replica_refuses_all_of_a_pipeline(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "one") as server, connect(server.url) as client:
        jobs = JobStore(client)
        job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(redis.ReadOnlyError):
            jobs.transition(job, Change(delay=15), intent_ms=1, durable_within=1.0)
        client.replicaof("NO", "ONE")
        assert jobs.get(job.id).intent_ms is None


def test_every_script_says_what_it_may_do() -> None:
    """Without its first line a script that is refused in the middle would leave what it did until then."""
    for path in files("finetune_queue.store").joinpath("lua").iterdir():
        assert path.read_text().startswith("#!lua"), path.name

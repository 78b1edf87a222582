"""What a starting worker makes of the servers that it is to run on."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import WorkerShutdown
from celery.worker import state
from celery.worker.consumer import Consumer
from structlog.testing import capture_logs

from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.settings import Settings
from finetune_queue.store import LiveWorker, ServerFacts, Workers, keys, note_api, server_problems
from finetune_worker import server_check
from finetune_worker.celery import create_app
from finetune_worker.pulse import Pulse
from finetune_worker.server_check import MOST_WAIT, PatientConsumer, check_api, check_clock, check_server
from support.full import full

SOUND = ServerFacts(
    name="Redis",
    version="7.2.4",
    append_only=True,
    eviction="noeviction",
    replica=False,
    cluster=False,
    used_bytes=0,
    max_bytes=0,
    evicted=0,
    log_ok=True,
    replicas=0,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, socket_timeout=5) as found:
        found.flushall()
        yield found
        found.replicaof("NO", "ONE")
        found.config_set("maxmemory", 0)
        found.config_set("maxmemory-policy", "noeviction")
        found.config_set("appendonly", "yes")
        found.acl_setuser("default", enabled=True, commands=["+info"])


def check(server: ValkeyServer) -> tuple[bool, list[tuple[str, str]]]:
    with capture_logs() as logs:
        fit = check_server("FINETUNE_REDIS_URL", server.url)
    assert all(entry["setting"] == "FINETUNE_REDIS_URL" and entry["action"] for entry in logs)
    return fit, [(entry["event"], entry["log_level"]) for entry in logs]


@pytest.mark.usefixtures("client")
def test_a_sound_server_is_passed_over_in_silence(server: ValkeyServer) -> None:
    assert check(server) == (True, [])


def test_a_server_that_may_drop_jobs_is_refused(server: ValkeyServer, client: Any) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    assert check(server) == (False, [("redis_unfit", "error")])


def test_a_server_that_stays_a_replica_is_refused(
    server: ValkeyServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_check, "FAILOVER", 0.0)
    client.replicaof("127.0.0.1", 1)
    assert check(server) == (False, [("redis_unfit", "error")])


def test_the_sandbox_s_jobs_are_not_paid_for_and_paid_ones_not_looked_for_in_the_sandbox(
    server: ValkeyServer, client: Any
) -> None:
    def refused(*, sandbox: bool) -> bool:
        with capture_logs() as logs:
            fit = check_api(server.url, sandbox=sandbox)
        assert fit is not any(entry["event"] == "redis_of_other_api" for entry in logs)
        return not fit

    for ours in (True, False):
        assert not refused(sandbox=ours)  # nothing is there
        client.zadd(keys.deadlines(), {"a-job": 1})
        assert not refused(sandbox=ours)
        assert refused(sandbox=not ours)
        client.delete(keys.deadlines())
        Workers(client).seen(LiveWorker("other:1", "0.1.0"))
        assert refused(sandbox=not ours)
        client.delete(keys.workers())

    client.delete(keys.api())  # as a Redis that lost its data
    Workers(client).seen(LiveWorker("other:1", "0.1.0"), "paid")
    assert refused(sandbox=True)


def test_a_full_server_s_jobs_are_told_apart_too(server: ValkeyServer, client: Any) -> None:
    assert check_api(server.url, sandbox=True)
    client.zadd(keys.deadlines(), {"a-job": 1})
    with full(client):
        assert not check_api(server.url, sandbox=False)

        client.delete(keys.deadlines())
        assert check_api(server.url, sandbox=False)
    Workers(client).seen(LiveWorker("other:1", "0.1.0"), "paid")
    assert not check_api(server.url, sandbox=True)


def test_whose_jobs_they_are_is_asked_until_the_server_answers(
    server: ValkeyServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_api(server.url, sandbox=True)
    client.zadd(keys.deadlines(), {"a-job": 1})
    away = [redis.ConnectionError("away")]
    ask = note_api
    monkeypatch.setattr(server_check, "PAUSE", 0.01)
    monkeypatch.setattr(server_check, "note_api", lambda *args: raised(away.pop()) if away else ask(*args))
    assert not check_api(server.url, sandbox=False)
    assert not away


def raised(error: Exception) -> None:
    raise error


def test_a_failover_is_waited_for(server: ValkeyServer, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.replicaof("127.0.0.1", 1)
    monkeypatch.setattr(server_check.log, "warning", lambda *_, **__: client.replicaof("NO", "ONE"))
    assert check(server) == (True, [])


def test_a_server_without_a_log_is_warned_of(server: ValkeyServer, client: Any) -> None:
    client.config_set("appendonly", "no")
    assert check(server) == (True, [("redis_risky", "warning")])


def test_a_server_that_tells_nothing_is_warned_of(server: ValkeyServer, client: Any) -> None:
    client.acl_setuser("default", enabled=True, commands=["-info"])
    assert check(server) == (True, [("redis_not_checked", "warning")])


@pytest.mark.parametrize(("ahead", "off"), [(7200.0, 7200), (-7200.0, -7200), (2.0, 0)])
@pytest.mark.usefixtures("client")
def test_a_clock_that_is_off_is_warned_of(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, ahead: float, off: int
) -> None:
    monkeypatch.setattr("finetune_queue.store.server.time.time", lambda now=time.time: now() + ahead)
    with capture_logs() as logs:
        assert check_clock(server.url) == off
    assert [(entry["event"], entry["seconds"]) for entry in logs] == ([("clock_off", off)] if off else [])
    assert all("NTP" in entry["action"] for entry in logs)


def test_a_clock_that_cannot_be_compared_is_taken_for_right() -> None:
    with capture_logs() as logs:
        assert check_clock("redis://127.0.0.1:1/0") == 0
    assert [entry["event"] for entry in logs] == ["clock_not_checked"]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"cluster": True}, [("redis", True)]),
        ({"version": "7.0.15"}, [("redis", True)]),
        ({"version": "8.2"}, []),
        ({"name": "Valkey", "version": "7.0"}, []),
        ({"eviction": ""}, [("eviction", False)]),
        ({"log_ok": False}, [("persistence", False)]),
    ],
)
def test_what_no_server_here_can_be_made_to_say(changed: dict[str, object], found: list[tuple[str, bool]]) -> None:
    facts = ServerFacts(**{name: getattr(SOUND, name) for name in ServerFacts.__slots__} | changed)
    assert [(problem.about, problem.unfit) for problem in server_problems(facts)] == found


def test_on_an_unfit_server_no_worker_starts(server: ValkeyServer, client: Any, tmp_path: Path) -> None:
    client.config_set("maxmemory-policy", "volatile-lru")
    settings = {"FINETUNE_REDIS_URL": server.url, "SEGMIND_API_KEY": "SG_0123456789abcdef"}
    worker = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "finetune_worker", "worker"],
        env={**os.environ, **settings, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert worker.returncode == 1
    assert "the server may drop jobs when full (volatile-lru)" in worker.stderr
    assert "dispatcher_started" not in worker.stderr


def test_a_broker_that_was_away_for_long_is_soon_found_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(finetune_redis_url="redis://127.0.0.1:1/0"))
    consumer = PatientConsumer.__new__(PatientConsumer)
    vars(consumer).update(app=app, first_connection_attempt=False, broker_connection_retry_attempt=0)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) > 60:
            monkeypatch.setattr(state, "should_stop", 0)

    monkeypatch.setattr("kombu.utils.functional.sleep", sleep)
    with pytest.raises(WorkerShutdown), app.connection_for_read() as connection:
        consumer.ensure_connected(connection)
    waits = [float(found) for found in re.findall(r"Trying again in (\S+) seconds", caplog.text)]
    assert waits[:2] == [2, 4]
    assert {*waits[2:]} == {MOST_WAIT}


def test_a_broker_whose_memory_wavers_is_one_trouble(
    server: ValkeyServer, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, folder = "SG_0123456789abcdef", f"file://{tmp_path}"
    app = create_app(Settings(finetune_redis_url=server.url, segmind_api_key=key, finetune_artifact_url=folder))
    consumer = PatientConsumer.__new__(PatientConsumer)
    vars(consumer).update(app=app)
    rooms = [0, 0, 1, 0, 0, 0, 1]  # one limit for each wait; 1 byte refuses all writes
    connected: list[int] = []
    monkeypatch.setattr(Consumer, "connect", lambda _: connected.append(len(rooms)))
    excused: list[int] = []
    monkeypatch.setattr(Pulse, "excuse", lambda _: excused.append(len(rooms)))

    def sleep(_: float) -> None:
        client.config_set("maxmemory", rooms.pop(0))

    monkeypatch.setattr(server_check, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    client.config_set("maxmemory", 1)
    try:
        with capture_logs() as logs:
            consumer.connect()
    finally:
        client.config_set("maxmemory", 0)
        app.finetune.container.close()  # type: ignore[attr-defined]
    assert [entry["event"] for entry in logs] == ["broker_refuses_writes", "broker_takes_writes"]
    assert connected == [1]
    assert excused == [7, 6, 5, 4, 3, 2]  # its probe would have the worker restarted after a minute, for nothing

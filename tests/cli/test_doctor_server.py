"""``finetune doctor``: what it says of the Redis server and the broker."""

from pathlib import Path

import pytest
import redis
from celery import Celery

from finetune_queue.cli.output import ExitCode
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, RUN
from finetune_queue.store import Workers, connect
from support.cli import Run, Worker, checks
from support.full_disk import fill_disk
from support.socket_server import socket_server
from support.until import until
from wire.certificates import server_context
from wire.rawserver import RawServer


def test_a_server_that_may_lose_jobs(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendonly", "no")
            client.config_set("maxmemory-policy", "allkeys-lru")
        monkeypatch.setenv("FINETUNE_REDIS_URL", server.url)
        found = checks(run("doctor", "--json"))
    assert found["persistence"]["status"] == "warn"
    assert found["eviction"]["status"] == "fail"
    assert "allkeys-lru" in found["eviction"]["message"]
    assert "noeviction" in found["eviction"]["action"]


def test_a_broker_of_its_own_that_may_lose_messages(
    run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No worker starts with it."""
    monkeypatch.setenv("FINETUNE_BROKER_URL", queue_url)
    assert "broker" not in checks(run("doctor", "--json"))
    with ValkeyServer(tmp_path / "valkey") as server:
        monkeypatch.setenv("FINETUNE_BROKER_URL", server.url)
        assert checks(run("doctor", "--json"))["broker"]["status"] == "ok"
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendonly", "no")
            forgets = checks(run("doctor", "--json"))["broker"]
            client.config_set("appendonly", "yes")
            client.config_set("maxmemory-policy", "allkeys-lru")
        found = checks(run("doctor", "--json"))
    assert forgets["status"] == "warn"
    assert "would lose messages" in forgets["action"]  # the jobs are on the other server
    assert found["eviction"]["status"] == "ok"
    assert found["broker"]["status"] == "fail"
    assert found["broker"]["message"] == f"the server may drop messages when full (allkeys-lru) at {server.url}"
    assert "noeviction" in found["broker"]["action"]


def test_a_server_that_is_reached_by_a_socket_file(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket_server(tmp_path) as path:
        monkeypatch.setenv("FINETUNE_REDIS_URL", f"unix://{path}?db=2")
        found = checks(run("doctor", "--json"))
    assert found["redis"]["status"] == "ok"
    assert found["workers"]["message"].startswith("no worker answered")


def test_a_server_that_is_full(run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        monkeypatch.setenv("FINETUNE_REDIS_URL", server.url)
        with redis.Redis.from_url(server.url) as client:
            client.setrange("much", 20_000_000, "x")
            client.config_set("maxmemory", 100_000_000)
            assert checks(run("doctor", "--json"))["memory"]["status"] == "ok"
            client.config_set("maxmemory", 25_000_000)
            assert checks(run("doctor", "--json"))["memory"]["status"] == "warn"
            client.config_set("maxmemory", 20_000_000)
            found = checks(run("doctor", "--json"))
            refused = run("submit", "-d", "https://example.com/x.zip", "-n", "x", "-p", "a T", "-t", "T")
        monkeypatch.setenv("FINETUNE_REDIS_URL", queue_url)
        monkeypatch.setenv("FINETUNE_BROKER_URL", server.url)
        broker = checks(run("doctor", "--json"))["workers"]
    assert found["memory"]["status"] == "fail"
    assert "(maxmemory) in use: it refuses new jobs" in found["memory"]["message"]
    assert found["workers"]["message"].startswith("they could not be asked. The broker refused a command")
    assert "FINETUNE_BROKER_URL" not in found["workers"]["action"]  # which is not set
    assert "FINETUNE_BROKER_URL" in broker["action"]
    assert refused.code == ExitCode.UNAVAILABLE
    assert "The queue's Redis is full (maxmemory)" in refused.err


def test_a_server_whose_disk_is_full(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey", appendfsync="no") as server:
        monkeypatch.setenv("FINETUNE_REDIS_URL", server.url)
        with connect(server.url) as client:
            job = Worker(client).accept()
            fill_disk(server)
        found = checks(run("doctor", "--json"))
        shown = [run("status", job.id).code, run("list").code, run("events", job.id).code]
        refused = run("cancel", job.id).err
    assert found["redis"]["status"] == "ok"
    assert found["persistence"]["status"] == "fail"
    assert found["persistence"]["message"].startswith(
        "the server refuses every write: MISCONF Errors writing to the AOF"
    )
    assert found["persistence"]["action"].startswith("Check the server's disk")
    assert "FinetuneRedisForgets" in found["persistence"]["action"]  # for want of memory to fork, the disk is well
    assert (found["clock"]["status"], found["accounts"]["status"]) == ("ok", "warn")
    assert "persistence" in found["workers"]["action"]
    assert shown == [ExitCode.OK] * 3
    assert "MISCONF" in refused


def test_a_replica_takes_no_jobs(
    run: Run, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", str(valkey.port))
        monkeypatch.setenv("FINETUNE_REDIS_URL", server.url)
        found = checks(run("doctor", "--json"))
    assert found["redis"]["status"] == "fail"
    assert "is a replica" in found["redis"]["message"]
    assert "workers" not in found


def test_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_REDIS_URL", "redis://user:secret@127.0.0.1:1/0")
    result = run("doctor", "--json")
    found = checks(result)
    assert result.code == ExitCode.FAILED
    assert found["redis"]["message"].startswith("redis://127.0.0.1:1/0 does not answer")
    assert "secret" not in result.out
    assert "workers" not in found
    assert found["staging"]["status"] == "ok"


def test_a_server_whose_certificate_is_not_trusted(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context, _ = server_context(tmp_path)
    with RawServer(lambda wire: None, tls=context) as server:
        monkeypatch.setenv("FINETUNE_REDIS_URL", server.url.replace("https:", "rediss:"))
        found = checks(run("doctor", "--json"))["redis"]
    assert found["status"] == "fail"
    assert "?ssl_ca_certs=FILE" in found["action"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:wrong@{place}/0", "username-password"),
        ("redis://{place}/0", "Authentication"),
        ("redis://:secret@{place}/99", "DB index"),
    ],
)
def test_a_server_that_refuses_is_not_said_to_be_away(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, said: str
) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "secret")
        monkeypatch.setenv("FINETUNE_REDIS_URL", url.format(place=f"127.0.0.1:{server.port}"))
        check = checks(run("doctor", "--json"))["redis"]
        listed = run("list").err
    assert check["status"] == "fail"
    assert "answers, and refuses: " in check["message"]
    assert said in check["message"]
    assert check["action"].startswith("Correct the user, password or database number in FINETUNE_REDIS_URL")
    assert "The queue's Redis refused a command" in listed


@pytest.mark.usefixtures("queue_url")
def test_another_broker_that_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_BROKER_URL", "redis://127.0.0.1:1/0")
    found = checks(run("doctor", "--json"))
    assert found["redis"]["status"] == "ok"
    assert found["workers"]["status"] == "fail"
    assert found["workers"]["message"].startswith("they could not be asked. The broker is out of reach")
    assert found["workers"]["action"].startswith("Check FINETUNE_BROKER_URL")


def test_a_server_that_came_back_without_its_data(run: Run, queue_url: str) -> None:
    assert "data" not in checks(run("doctor", "--json"))
    with connect(queue_url) as client:
        Workers(client).note_emptied()
    found = checks(run("doctor", "--json"))["data"]
    assert found["status"] == "fail"
    assert found["message"].startswith("the server came back without its data 0.")
    assert "FinetuneRedisEmptied" in found["action"]


def test_fewer_replicas_than_a_submit_waits_for(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        ValkeyServer(tmp_path / "one") as one,
        ValkeyServer(tmp_path / "two") as two,
        redis.Redis(port=one.port) as first,
        redis.Redis(port=two.port) as second,
    ):
        monkeypatch.setenv("FINETUNE_REDIS_URL", one.url)
        assert "replicas" not in checks(run("doctor", "--json"))
        monkeypatch.setenv("FINETUNE_REDIS_REPLICAS", "1")
        alone = checks(run("doctor", "--json"))["replicas"]
        assert (alone["status"], alone["message"].split(":")[0]) == ("warn", "0 of 1 connected")
        assert "FINETUNE_REDIS_REPLICAS" in alone["action"]

        first.config_set("repl-diskless-sync-delay", 0)  # or it waits 5 s for more replicas
        second.replicaof("127.0.0.1", str(one.port))
        until(lambda: first.info("replication")["connected_slaves"] == 1, seconds=20)
        found = checks(run("doctor", "--json"))["replicas"]
        assert (found["status"], found["message"]) == ("ok", "1 connected; a submit waits for 1")

        first.config_set("appendonly", "no")
        found = checks(run("doctor", "--json"))["replicas"]
        assert (found["status"], "keeps no append-only log" in found["message"]) == ("warn", True)


def test_requests_that_were_sent_to_where_no_worker_looks(run: Run, queue_url: str) -> None:
    prefix = {"global_keyprefix": "{finetune}:"}
    for options, queue in [({}, QUEUE), (prefix, "celery"), (prefix, QUEUE)]:
        app = Celery(broker=queue_url, set_as_current=False)
        app.conf.broker_transport_options = options
        app.send_task(RUN, [{}], queue=queue, priority=9)
        app.close()
    found = checks(run("doctor", "--json"))["strays"]
    assert found["status"] == "warn"
    assert found["message"] == (
        "2 messages for this service where no worker looks: finetune\\x06\\x169, {finetune}:celery\\x06\\x169"
    )
    assert "`finetune`" in found["action"]
    assert 'DEL "NAME"' in found["action"]  # redis-cli reads \x06 only within such quotes


def test_what_others_keep_in_lists_of_those_names_is_no_stray(run: Run, queue_url: str) -> None:
    app = Celery(broker=queue_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "{finetune}:"}
    app.send_task("orders.finetuned", [{}])
    app.close()
    with redis.Redis.from_url(queue_url) as client:
        client.set("finetune", "theirs")
        client.lpush("finetune\x06\x163", b"\xff")
    assert "strays" not in checks(run("doctor", "--json"))

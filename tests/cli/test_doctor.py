"""``finetune doctor``: what it finds, what it advises, and its exit code."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue import __version__
from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import JobState, new_job_id, parse_sink
from finetune_queue.local.valkey import ValkeyServer, free_port
from finetune_queue.messaging import Answered, Messenger
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    Attempt,
    Budget,
    CallClass,
    Hold,
    LiveWorker,
    Outbox,
    SinkLines,
    Slot,
    Workers,
    clock_skew,
    connect,
    keys,
    note_api,
)
from finetune_queue.store.workers import Api
from support.cli import Run, Worker
from support.full_disk import fill_disk
from support.until import until
from wire.certificates import server_context
from wire.rawserver import RawServer


def checks(result: Any) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in result.json["checks"]}


def test_a_server_without_workers(run: Run, queue_url: str) -> None:
    result = run("doctor", "--json")
    found = checks(result)
    assert result.code == ExitCode.FAILED
    assert result.json["ok"] is False
    assert {name: check["status"] for name, check in found.items()} == {
        "settings": "ok",
        "segmind": "ok",
        "redis": "ok",
        "persistence": "ok",
        "eviction": "ok",
        "memory": "ok",
        "clock": "ok",
        "workers": "fail",
        "accounts": "warn",
        "sinks": "ok",
        "staging": "ok",
        "artifacts": "ok",
    }
    assert queue_url in found["redis"]["message"]
    assert "Start one: celery -A finetune_worker worker" in found["workers"]["action"]


def test_the_same_as_text_has_a_line_for_each_check(run: Run, queue_url: str) -> None:
    lines = run("doctor").out.splitlines()
    assert len(lines) == 12
    assert lines[2] == f"ok    redis: Valkey {_version(queue_url)} at {queue_url}"
    assert next(line for line in lines if line.startswith("fail")).endswith("Jobs wait until then.")


def _version(url: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.info("server")["valkey_version"])


def test_accounts_as_the_workers_know_them(run: Run, worker: Worker) -> None:
    worker.announce(calls=50, window=60)
    worker.bring(worker.accept(), JobState.TRAINING)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "ok"
    assert account["message"] == "0 of 50 calls per 60 s in use, 0 jobs waiting, 1 training, 0 submits today"


@pytest.fixture
def budget(worker: Worker, queue_url: str) -> Iterator[Budget]:
    worker.announce()
    with connect(queue_url) as client:
        yield Budget(client, call_timeout=5, handover=5, first_sweep=5, backoff_base=1, backoff_max=8)


def a_call(budget: Budget, *, submit: bool = False) -> Slot:
    call = budget.take("default", "someone", float(CallClass.SUBMIT), submit=submit)
    assert isinstance(call, Slot)
    return call


def test_an_account_that_is_paused(run: Run, budget: Budget) -> None:
    budget.pause(a_call(budget, submit=True), "Segmind answered 429.", 30.0, code="rate_limited")
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert "Segmind answered 429." in account["message"]
    assert account["message"].endswith("1 submit today")
    assert "lower its rate_limit" in account["action"]


def test_an_account_whose_calls_are_refused_after_every_pause(run: Run, worker: Worker, budget: Budget) -> None:
    budget.pause(a_call(budget), "Segmind does not know the key.", 0.01, code="api_key_rejected")
    until(lambda: not worker.accounts.status("default").paused_for, seconds=5)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("no call has succeeded since: Segmind does not know the key.")

    a_call(budget)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("paused while one call tests it: Segmind does not know the key.")


def test_an_account_whose_submits_alone_are_refused(run: Run, worker: Worker, budget: Budget) -> None:
    budget.refuse_submits(a_call(budget, submit=True), "There are no credits left.", 0.01, code="credits_exhausted")
    until(lambda: not worker.accounts.status("default").submits_paused_for, seconds=5)
    budget.end(a_call(budget))  # shows nothing of submits
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("no submit has succeeded since: There are no credits left.")
    assert account["action"].endswith("accepts clears this, or `finetune account resume default`.")

    a_call(budget, submit=True)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["message"].startswith("submits are paused while one tests whether Segmind takes them: There are no")


def test_all_that_holds_an_account_back_is_named(run: Run, worker: Worker, budget: Budget) -> None:
    capped = AccountLimits(calls=50, window=60, max_submits_per_day=1)
    worker.accounts.configure("default", capped)
    budget.end(a_call(budget, submit=True))
    budget.pause(a_call(budget), "Segmind does not know the key.", 30.0, code="api_key_rejected")
    worker.accounts.stop_submits("default", stopped=True)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["message"].startswith("submits are stopped; no submits are left for today; paused for ")
    assert account["message"].endswith("1 of 1 submits today")
    for action in ("account resume default", "a higher cap", "It resumes by itself"):
        assert action in account["action"]


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


@pytest.mark.usefixtures("queue_url")
def test_stores_that_cannot_be_written(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("STAGING", "ARTIFACT"):
        monkeypatch.setenv(f"FINETUNE_{name}_URL", f"file://{tmp_path}/file/inside")
    found = checks(run("doctor", "--json"))
    # A producer does not write weights; a worker does.
    assert (found["staging"]["status"], found["artifacts"]["status"]) == ("fail", "warn")
    monkeypatch.setenv("SEGMIND_API_KEY", "SG_0123456789abcdef")
    result = run("doctor", "--json")
    assert checks(result)["artifacts"]["status"] == "fail"
    assert "SG_0123456789abcdef" not in result.out


@pytest.mark.usefixtures("queue_url")
def test_a_bucket_that_does_not_exist_gets_one_advice(run: Run, monkeypatch: pytest.MonkeyPatch, s3: Any) -> None:
    del s3
    for name in ("STAGING", "ARTIFACT"):
        monkeypatch.setenv(f"FINETUNE_{name}_URL", "s3://not-there/inside")
    found = checks(run("doctor", "--json"))
    assert found["staging"]["message"] == "The bucket not-there does not exist."
    advice = "Create it, or correct its name. The setting is"
    assert found["staging"]["action"] == f"{advice} FINETUNE_STAGING_URL."
    said = f"Only workers need to write there. {advice} FINETUNE_ARTIFACT_URL."
    assert found["artifacts"]["action"] == said


def test_wrong_settings_end_it_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_REDIS_URL", "http://x")
    result = run("doctor")
    assert result.code == ExitCode.SETTINGS
    assert "FINETUNE_REDIS_URL (environment): should start with redis://" in result.err


@pytest.mark.usefixtures("queue_url")
def test_it_says_whether_trainings_would_be_paid(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the real API: trainings are charged" in run("doctor").out
    monkeypatch.setenv("SEGMIND_BASE_URL", "http://127.0.0.1:9")
    assert "so a sandbox" in run("doctor").out


def test_it_says_which_api_the_workers_call_whatever_these_settings_name(
    run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = LiveWorker("a:1", __version__)
    with connect(queue_url) as client:
        Workers(client).seen(here, "sandbox")
        found = checks(run("doctor", "--json"))["worker api"]
        assert found["status"] == "warn"
        told = (
            "the workers of this Redis call a sandbox: nothing is charged; these settings name https://api.segmind.com"
        )
        assert found["message"] == told
        client.delete(keys.api())
        Workers(client).seen(here, "paid")
    assert checks(run("doctor", "--json"))["worker api"]["status"] == "ok"
    monkeypatch.setenv("SEGMIND_BASE_URL", "http://127.0.0.1:9")
    found = checks(run("doctor", "--json"))["worker api"]
    assert (found["status"], "trainings are charged" in found["message"]) == ("warn", True)


def test_a_clock_that_is_wrong(run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(queue_url) as client:
        before = time.time()
        assert abs(clock_skew(client)) <= time.time() - before + 0.1
    monkeypatch.setattr("finetune_queue.store.server.time.time", lambda now=time.time: now() - 90)
    clock = checks(run("doctor", "--json"))["clock"]
    assert (clock["status"], clock["message"]) == ("warn", "this machine is 90 s behind the Redis server")


@pytest.mark.usefixtures("queue_url")
def test_a_consumer_of_events_is_no_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Messenger, "workers", lambda *_: Answered([], ["celery@vm"]))
    alone = checks(run("doctor", "--json"))["workers"]
    not_counted = "; without this service's tasks, so not counted: celery@vm"
    assert (alone["status"], alone["message"]) == ("fail", f"no worker answered within 0.1 s{not_counted}")
    assert "Start one: celery -A finetune_worker worker" in alone["action"]
    monkeypatch.setattr(Messenger, "workers", lambda *_: Answered(["worker1@vm"], ["celery@vm"]))
    beside = checks(run("doctor", "--json"))["workers"]
    assert (beside["status"], beside["message"]) == ("ok", f"1 alive: worker1@vm{not_counted}")


def test_a_server_that_came_back_without_its_data(run: Run, queue_url: str) -> None:
    assert "data" not in checks(run("doctor", "--json"))
    with connect(queue_url) as client:
        Workers(client).note_emptied()
    found = checks(run("doctor", "--json"))["data"]
    assert found["status"] == "fail"
    assert found["message"].startswith("the server came back without its data 0.")
    assert "FinetuneRedisEmptied" in found["action"]


def test_workers_of_two_versions(run: Run, queue_url: str) -> None:
    with connect(queue_url) as client:
        workers = Workers(client)
        workers.seen(LiveWorker("host-a:1", __version__))
        found = checks(run("doctor", "--json"))
        seen = "workers seen in the last 35 s"  # and killed since, as far as the ping tells
        silent = "none answered within 0.1 s, though 1 worker gave a sign of life in the last 35 s: not back at the"
        assert (found["workers"]["status"], found["workers"]["message"][: len(silent)]) == ("warn", silent)
        assert "Start one" not in found["workers"]["action"]
        assert (found["versions"]["status"], found["versions"]["message"].split(":")[0]) == ("ok", seen)
        workers.seen(LiveWorker("host-b:1", "0.0.9"))
    versions = checks(run("doctor", "--json"))["versions"]
    assert versions["status"] == "warn"
    explained = "2 of them did not answer just now: busy, stopped, or killed a moment ago"
    assert (
        versions["message"] == f"{seen}: 1 with 0.0.9, 1 with {__version__}; this program: {__version__}; {explained}"
    )


def test_workers_of_another_broker_are_not_said_to_come_back(
    run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong FINETUNE_BROKER_URL of a producer looks like that for ever."""
    monkeypatch.setattr(Messenger, "workers", lambda *_: Answered([], ["celery@vm"]))
    with connect(queue_url) as client:
        Workers(client).seen(LiveWorker("host-a:1", __version__))
        same = checks(run("doctor", "--json"))["workers"]
        monkeypatch.setenv("FINETUNE_BROKER_URL", queue_url)
        assert checks(run("doctor", "--json"))["workers"] == same
        monkeypatch.setenv("FINETUNE_BROKER_URL", f"{queue_url}?socket_timeout=7")
        other = checks(run("doctor", "--json"))["workers"]
    assert (same["status"], other["status"]) == ("warn", "fail")
    assert "FINETUNE_BROKER_URL" not in same["message"]
    assert ", or their FINETUNE_BROKER_URL is another than here" in other["message"]
    for found in (same, other):
        assert found["message"].endswith("; without this service's tasks, so not counted: celery@vm")


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


def test_workers_whose_settings_differ(run: Run, queue_url: str) -> None:
    with connect(queue_url) as client:
        Accounts(client).configure("default", AccountLimits(calls=5, window=60))
        workers = Workers(client)
        workers.seen(LiveWorker("a:1", __version__, ("default",), limits=(("default", AccountLimits(5, 60)),)))
        assert "limits default" not in checks(run("doctor", "--json"))
        capped = AccountLimits(50, 60, max_training=10, max_submits_per_day=57)
        workers.seen(LiveWorker("b:1", __version__, ("default",), limits=(("default", capped),), node="w2@b"))
    found = checks(run("doctor", "--json"))["limits default"]
    assert found["status"] == "warn"
    one, other = "a:1 has 5 calls per 60 s", "w2@b has 50 calls per 60 s, 10 trainings, 57 submits a day"
    assert found["message"] == f"the settings of the workers differ: {one}; {other}"


@pytest.mark.parametrize(
    ("api", "workers_api", "cap", "bounded"),
    [
        ("https://api.segmind.com", "paid", None, False),
        ("https://api.segmind.com", "paid", 20, True),
        ("https://api.segmind.com", "paid", 0, True),
        ("https://api.segmind.com", None, None, False),
        ("http://127.0.0.1:8000", None, None, True),
        ("https://api.segmind.com", "sandbox", None, True),
        ("http://127.0.0.1:8000", "paid", None, False),
    ],
)
def test_an_account_that_may_spend_without_end(
    *,
    run: Run,
    queue_url: str,
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    workers_api: Api | None,
    cap: int | None,
    bounded: bool,
) -> None:
    monkeypatch.setenv("SEGMIND_BASE_URL", api)
    with connect(queue_url) as client:
        if workers_api is not None:
            note_api(client, workers_api)
        Accounts(client).configure("default", AccountLimits(calls=5, window=60, max_submits_per_day=cap))
        Workers(client).seen(LiveWorker("a:1", __version__, ("default",)))
    found = checks(run("doctor", "--json"))
    assert ("cap default" not in found) == bounded
    if not bounded:
        assert found["cap default"]["status"] == "warn"
        assert "SEGMIND_MAX_SUBMITS_PER_DAY" in found["cap default"]["action"]


def test_workers_with_other_keys_for_one_account(run: Run, worker: Worker, queue_url: str) -> None:
    worker.announce()
    with connect(queue_url) as client:
        workers = Workers(client)
        for name, key_print in (("a:1", "0a1b2c"), ("c:1", "0a1b2c"), ("old:1", "")):
            prints = (("default", key_print),) if key_print else ()
            workers.seen(LiveWorker(name, __version__, ("default",), key_prints=prints))
        assert "keys default" not in checks(run("doctor", "--json"))
        workers.seen(LiveWorker("b:1", __version__, ("default",), key_prints=(("default", "d3e4f5"),)))
    found = checks(run("doctor", "--json"))["keys default"]
    assert found["status"] == "warn"
    assert found["message"] == "the workers have different keys for it, or call different APIs: a:1, c:1; b:1"
    assert "not_found" in found["action"]


def test_workers_whose_clock_was_off_when_they_started(run: Run, queue_url: str) -> None:
    with connect(queue_url) as client:
        workers = Workers(client)
        workers.seen(LiveWorker("host-a:1", __version__, ("default",)))
        assert "worker clocks" not in checks(run("doctor", "--json"))
        workers.seen(LiveWorker("host-b:1", __version__, ("default",), clock_off=7200))
        workers.seen(LiveWorker("host-c:1", __version__, clock_off=-90))
    found = checks(run("doctor", "--json"))["worker clocks"]
    assert found["status"] == "warn"
    assert found["message"] == "host-b:1 is 2 h ahead of the Redis server, host-c:1 is 90 s behind it"
    assert "restart" in found["action"]


def test_a_sink_that_answers_and_takes_nothing_is_named(run: Run, worker: Worker, queue_url: str) -> None:
    url = "https://sink.example/secret?events=accepted"
    job, sink = worker.accept(reply_to=[url]), parse_sink(url)
    with connect(queue_url) as client:
        outbox, lines = Outbox(client), SinkLines(client)
        outbox.line_up(job.id, [sink])
        assert checks(run("doctor", "--json"))["sinks"]["status"] == "ok"
        [hold], _ = outbox.take_lines(1, 60)
        why = f"{sink.shown} answered with status 500"
        attempt = Attempt(f"{job.id}-1", sink.shown, sink.id, "failed", 1, 5, 500, why)
        outbox.attempted(hold, job.id, attempt, before=0, after=0, lease=60)
        client.hincrby(keys.job_sinks(job.id), f"{sink.id}:since", -25 * 60_000)
        outbox.leave(hold, outbox.subject(job.id), [sink], delay=100)
        outbox.settle(hold)
        assert lines.view().lag == pytest.approx(25 * 60, abs=30)
        found = checks(run("doctor", "--json"))["sinks"]
        assert (found["status"], found["message"]) == ("warn", f"{why}; for 25 min now")
        assert found["action"].endswith(f"finetune deliveries {job.id}")

        hold = Hold(sink.line(job.id), lines.all()[0].next_ms)
        outbox.settle(hold, down_for=100, reason="cannot be reached")
        in_lanes: dict[str, str] = {}
        while len(in_lanes) < 4:
            other = new_job_id()
            in_lanes[sink.line(other)] = other
        for other in in_lanes.values():
            outbox.line_up(other, [sink])
        for hold in outbox.take_lines(4, 60)[0]:
            outbox.settle(hold, down_for=100, reason="cannot be reached")
        assert (lines.view().up, lines.view().down) == (0, 1)  # one place, however many lines lead there
    [line] = [each for each in run("doctor", "--json").json["checks"] if each["name"] == "sinks"]
    assert "has been out of reach" in line["message"]


@pytest.mark.usefixtures("queue_url")
def test_sinks_on_other_servers_are_knocked_at(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        gone = free_port()
        urls = f"list://x redis://:secret@127.0.0.1:{port}/1?queue=q redis://127.0.0.1:{gone}/1?queue=q"
        monkeypatch.setenv("FINETUNE_SINKS", urls)
        result = run("doctor", "--json")
    found = [(check["status"], check["message"]) for check in result.json["checks"] if check["name"] == "sink"]
    assert found[0] == ("ok", f"redis://127.0.0.1:{port}/1 accepts connections")
    assert found[1][0] == "warn"
    assert found[1][1].startswith(f"redis://127.0.0.1:{gone}/1 accepts no connection from here")
    assert "secret" not in result.out

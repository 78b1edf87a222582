"""Probes and metrics, with and without Redis."""

import asyncio
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from finetune_queue.contract import JobState
from finetune_queue.gateway.app import create_app
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import (
    Accounts,
    CallClass,
    Change,
    JobStore,
    LiveWorker,
    Outbox,
    Rejections,
    TaskCall,
    Workers,
    keys,
    room_score,
)
from gateway.serving import AUTH, MakeSettings, Start
from support.samples import sample
from support.until import until

Numbers = dict[tuple[str, str], float]


def scrape(http: httpx.Client) -> Numbers:
    reply = http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (found.name, ",".join(found.labels.values())): found.value
        for family in text_string_to_metric_families(reply.text)
        for found in family.samples
    }


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_may_ask_by_head(http: httpx.Client, path: str) -> None:
    reply = http.head(path)
    assert (reply.status_code, reply.text) == (200, "")
    assert http.post(path).headers["allow"] == "GET, HEAD"


def test_the_numbers_are_those_of_the_queue(
    http: httpx.Client, queue: FineTuneQueue, client: redis.Redis, account: Accounts
) -> None:
    jobs = [queue.submit(sample()) for _ in range(3)]
    store: JobStore = queue._jobs
    change = Change(delay=60, room_score=room_score(CallClass.SUBMIT, jobs[0].record))
    store.transition(jobs[0].record, change, to=JobState.UPLOADING, waiting_for="api-slot")
    client.zadd(keys.state("uploading"), {jobs[0].id: (time.time() - 100) * 1000})
    Rejections(client, Outbox(client)).add("m-1", TaskCall([], {}), "no reason", ["none"])
    queue.cancel(jobs[1].id)
    client.zadd(keys.slots("default"), {"a": (time.time() + 50) * 1000})
    client.hset(keys.account("default"), "paused_until", str(int((time.time() + 30) * 1000)))

    found = scrape(http)

    assert found["finetune_up", ""] == 1
    assert found["finetune_jobs", "accepted"] == 1
    assert found["finetune_jobs", "uploading"] == 1
    assert found["finetune_jobs", "cancelled"] == 1
    assert found["finetune_jobs", "failed"] == 0
    assert found["finetune_oldest_job_seconds", "uploading"] == pytest.approx(100, abs=5)
    assert found["finetune_dead_letters", ""] == 1
    assert found["finetune_account_calls_limit", "default"] == 50
    assert found["finetune_account_slots_used", "default"] == 1
    assert found["finetune_account_waiting", "default"] == 1
    assert found["finetune_account_paused_seconds", "default"] == pytest.approx(30, abs=5)
    assert found["finetune_queue_messages", "finetune"] == 3
    assert found["finetune_queue_messages", "finetune.transfer"] == 0
    assert found["finetune_overdue_seconds", ""] == 0


def test_a_redis_that_came_back_without_its_data(http: httpx.Client, client: redis.Redis) -> None:
    assert scrape(http)["finetune_redis_emptied", ""] == 0
    Workers(client).note_emptied()
    assert scrape(http)["finetune_redis_emptied", ""] == 1


def test_an_account_that_one_call_tests_counts_as_paused(
    http: httpx.Client, client: redis.Redis, account: Accounts
) -> None:
    soon = str(int((time.time() + 70) * 1000))
    tested: dict[Any, Any] = {"probing": "1", "probe_until": soon, "submits_refused": "1", "submits_probe_until": soon}
    client.hset(keys.account("default"), mapping=tested)
    found = scrape(http)
    [seen] = http.get("/v1/overview").json()["accounts"]
    for calls in ("paused_seconds", "submits_paused_seconds"):
        assert found[f"finetune_account_{calls}", "default"] == pytest.approx(70, abs=5)
        assert seen[calls] == pytest.approx(70, abs=5)


def test_an_account_that_was_removed_and_that_no_job_needs_is_not_reported(
    http: httpx.Client, client: redis.Redis, account: Accounts
) -> None:
    def shown(names: list[str]) -> bool:
        return [account["name"] for account in http.get("/v1/overview").json()["accounts"]] == names

    client.hset(keys.account("default"), mapping={"probing": "1", "pause_code": "api_key_rejected"})
    unwell = ("finetune_account_unwell", "default,api_key_rejected")
    assert scrape(http)[unwell] == 1  # without any worker it may just be restarted
    until(partial(shown, ["default"]), seconds=10)
    Workers(client).seen(LiveWorker("a:1", "0.1.0", ("another",)))
    assert not [name for name, labels in scrape(http) if labels.startswith("default") and "account" in name]
    until(partial(shown, []), seconds=10)  # a look is kept for a moment
    client.zadd(keys.tracked("default"), {"a-job": 1})
    assert scrape(http)[unwell] == 1
    until(partial(shown, ["default"]), seconds=10)


def test_an_overdue_deadline_shows_that_no_worker_looks(
    http: httpx.Client, queue: FineTuneQueue, client: redis.Redis
) -> None:
    job = queue.submit(sample())
    client.zadd(keys.deadlines(), {job.id: (time.time() - 70) * 1000})
    assert scrape(http)["finetune_overdue_seconds", ""] == pytest.approx(70, abs=5)


def test_no_label_is_one_of_too_many(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.submit(sample())
    for path in (f"/v1/jobs/{job.id}", "/nothing/here", "/hooks/default/secret-token"):
        http.get(path)
    http.request("BREW", "/v1/jobs")
    text = http.get("/metrics").text
    assert job.id not in text
    assert "nothing" not in text
    assert "secret-token" not in text
    assert "BREW" not in text
    found = scrape(http)
    assert found["finetune_gateway_requests_total", "GET,/v1/jobs/{job_id},200"] >= 1
    assert found["finetune_gateway_request_seconds_count", "/v1/jobs/{job_id}"] >= 1


def test_what_queries_select_is_there_before_its_first_request(make_settings: MakeSettings, start: Start) -> None:
    with httpx.Client(base_url=start(make_settings()), headers=AUTH, timeout=30, trust_env=False) as http:
        found = scrape(http)
    counted = {labels: value for (name, labels), value in found.items() if name == "finetune_gateway_requests_total"}
    for labels in ("POST,/v1/jobs,202", "POST,/v1/jobs,500", "POST,/v1/jobs,503", "POST,/hooks/{account}/{token},202"):
        assert counted[labels] == 0  # else the first of each gateway would be in no increase()


@pytest.fixture
def away(make_settings: MakeSettings, start: Start) -> str:
    """A gateway whose Redis refuses connections."""
    return start(make_settings(finetune_redis_url="redis://127.0.0.1:1/0"))


def test_a_redis_that_is_full_is_not_said_to_be_out_of_reach(
    make_settings: MakeSettings, start: Start, tmp_path: Path
) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as full:
            full.config_set("maxmemory", 1)
        url = start(make_settings(finetune_redis_url=server.url))
        with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
            reply = http.post("/v1/jobs", json=sample())
    assert (reply.status_code, reply.json()["code"]) == (503, "queue-unavailable")
    assert "as when it is full" in reply.json()["detail"]


def test_without_redis_every_route_says_so_and_when_to_come_back(away: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = "01a209a2-237a-71ab-ad53-0d71cd539251"
    calls = [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", f"/v1/jobs/{job}"),
        ("POST", f"/v1/jobs/{job}/cancel"),
        ("POST", f"/v1/jobs/{job}/retry"),
        ("POST", f"/v1/jobs/{job}/access"),
        ("GET", f"/v1/jobs/{job}/events"),
        ("GET", f"/v1/jobs/{job}/stream"),
        ("GET", "/v1/events"),
        ("GET", "/v1/stream"),
        ("GET", "/v1/overview"),
        ("GET", "/readyz"),
    ]
    bodies: dict[str, Any] = {"/v1/jobs": sample(), f"/v1/jobs/{job}/access": {"public": True}}
    ids = []
    with httpx.Client(base_url=away, headers=AUTH, timeout=30, trust_env=False) as http:
        for method, path in calls:
            reply = http.request(method, path, json=bodies.get(path) if method == "POST" else None)
            assert (reply.status_code, reply.json()["code"]) == (503, "queue-unavailable"), (method, path)
            assert int(reply.headers["retry-after"]) > 0
            assert "127.0.0.1" not in reply.text
            ids.append(reply.headers["x-request-id"])
        assert http.get("/livez").status_code == 200
        assert scrape(http)["finetune_up", ""] == 0

    # Why, is in the log.
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    failed = [line for line in said if line["event"] == "request_failed"]
    assert [line["request_id"] for line in failed] == ids
    assert [line["route"].replace("{job_id}", job) for line in failed] == [path for _, path in calls]
    assert {line["level"] for line in failed} == {"warning"}
    assert {line["error_type"] for line in failed} == {"ConnectionError", "QueueUnavailableError"}
    scraped = [line for line in said if line["event"] == "metrics_without_redis"]
    assert len(scraped) == 1
    assert all("127.0.0.1:1" in line["error"] for line in failed + scraped)


def test_a_redis_that_does_not_answer_does_not_stop_the_gateway(make_settings: MakeSettings, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = start(make_settings(finetune_redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            started = time.monotonic()
            assert http.get("/readyz").status_code == 503
            assert time.monotonic() - started < 20
            assert http.get("/livez").status_code == 200


def test_a_redis_that_stands_still_is_told_of_before_prometheus_gives_up(
    make_settings: MakeSettings, start: Start, tmp_path: Path
) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        url = start(make_settings(finetune_redis_url=server.url))
        with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
            assert scrape(http)["finetune_up", ""] == 1
            server.process.send_signal(signal.SIGSTOP)
            try:
                for _ in range(2):  # by a connection that there was, and by a new one
                    started = time.monotonic()
                    assert scrape(http)["finetune_up", ""] == 0
                    assert time.monotonic() - started < 10
            finally:
                server.process.send_signal(signal.SIGCONT)
            assert scrape(http)["finetune_up", ""] == 1


def test_a_broker_of_its_own_that_does_not_answer_leaves_the_numbers_of_the_jobs(
    make_settings: MakeSettings, start: Start, queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_queue.messaging.ASKING_SECONDS", 0.1)
    queue.submit(sample())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = start(make_settings(finetune_broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http:
            found = scrape(http)
            assert (found["finetune_up", ""], found["finetune_jobs", "accepted"]) == (1, 1)
            assert not [name for name, _ in found if name == "finetune_queue_messages"]
            assert http.get("/v1/overview").json()["queues"] == {}
            reply = http.get("/v1/load")
            assert (reply.status_code, reply.json()["code"]) == (503, "queue-unavailable")


def test_a_broker_that_does_not_answer_is_waited_for_once_by_all_that_look(
    make_settings: MakeSettings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would take the threads of all other calls, for minutes."""
    monkeypatch.setattr("finetune_queue.messaging.ASKING_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = start(make_settings(finetune_broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        started = time.monotonic()
        with ThreadPoolExecutor(10) as viewers:
            ask = partial(httpx.get, f"{url}/v1/overview", headers=AUTH, timeout=30, trust_env=False)
            assert [reply.status_code for reply in viewers.map(lambda _: ask(), range(10))] == [200] * 10
        assert time.monotonic() - started < 9


def test_a_gateway_that_ends_leaves_no_connection_behind(
    make_settings: MakeSettings, settings: Settings, client: redis.Redis
) -> None:
    # In a database of its own, so that no other gateway's are counted.
    app = create_app(make_settings(finetune_redis_url=f"{settings.finetune_redis_url.removesuffix('/0')}/7"))

    def connections() -> int:
        return [each["db"] for each in client.client_list()].count("7")

    async def live() -> None:
        async with app.router.lifespan_context(app):
            backend = app.state.backend
            for ask in (backend.facts, backend.jobs.counts, backend.queue.counts):
                ask()
            assert connections() == 3

    asyncio.run(live())
    until(lambda: connections() == 0, seconds=30)


def test_probes_need_no_token(url: str) -> None:
    for path in ("/livez", "/readyz"):
        reply = httpx.get(url + path, trust_env=False)
        assert (reply.status_code, reply.json()) == (200, {"status": "ok"})

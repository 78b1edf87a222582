"""Events by pages and as they come, from any place, across an outage of Redis."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from finetune_queue.contract import JobState, new_job_id
from finetune_queue.gateway import hub, server
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.sdk import FineTuneQueue, Job
from finetune_queue.settings import Settings
from finetune_queue.store import Change, Feed, JobStore, keys
from gateway.serving import AUTH, MakeSettings, Start, run_gateway
from gateway.sse import stream
from support.samples import sample
from support.until import until


def move(queue: FineTuneQueue, job: Job, *states: JobState) -> None:
    store: JobStore = queue._jobs
    record = store.get(job.id)
    for state in states:
        record = store.transition(record, Change(delay=None if state.terminal else 60), to=state)


def test_a_job_s_events_by_pages(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.submit(sample())
    move(queue, job, JobState.UPLOADING, JobState.SUBMITTING)
    first = http.get(f"/v1/jobs/{job.id}/events?limit=2").json()
    assert [event["id"] for event in first["events"]] == [f"{job.id}-1", f"{job.id}-2"]
    rest = http.get(f"/v1/jobs/{job.id}/events", params={"after": first["next"]}).json()
    assert [event["id"] for event in rest["events"]] == [f"{job.id}-3"]
    assert http.get(f"/v1/jobs/{job.id}/events?after=3").json() == {"events": [], "next": 3}
    assert [event.model_dump(mode="json") for event in job.events()] == first["events"] + rest["events"]


def test_all_events_by_pages(http: httpx.Client, queue: FineTuneQueue) -> None:
    jobs = [queue.submit(sample()) for _ in range(3)]
    first = http.get("/v1/events?limit=2").json()
    rest = http.get("/v1/events", params={"after": first["next"]}).json()
    assert [event["subject"] for event in first["events"] + rest["events"]] == [job.id for job in jobs]
    assert http.get("/v1/events", params={"after": rest["next"]}).json() == {"events": [], "next": rest["next"]}


def test_a_stream_tells_what_was_and_what_comes_and_ends_with_the_job(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.submit(sample())
    other = queue.submit(sample())
    with stream(http, f"/v1/jobs/{job.id}/stream") as events:
        assert (first := next(events)).kind == "accepted"
        assert first.id == "1"
        move(queue, other, JobState.UPLOADING)
        move(queue, job, JobState.UPLOADING)
        assert (next(events).kind) == "uploading"
        move(queue, job, JobState.CANCELLED)
        assert [(event.id, event.event) for event in events] == [("3", "message"), ("3", "end")]


def test_a_stream_goes_on_after_the_last_event_that_was_seen(http: httpx.Client, queue: FineTuneQueue) -> None:
    job = queue.submit(sample())
    move(queue, job, JobState.UPLOADING, JobState.SUBMITTING, JobState.CANCELLED)
    with stream(http, f"/v1/jobs/{job.id}/stream", "2") as events:
        assert [(event.id, event.event) for event in events] == [("3", "message"), ("4", "message"), ("4", "end")]
    with stream(http, f"/v1/jobs/{job.id}/stream", "4") as events:
        assert [event.event for event in events] == ["end"]


def test_the_stream_of_all_jobs_resumes_without_gap_or_repeat(http: httpx.Client, queue: FineTuneQueue) -> None:
    with stream(http, "/v1/stream") as events:
        jobs = [queue.submit(sample()) for _ in range(3)]
        seen = [next(events), next(events)]
    jobs += [queue.submit(sample()) for _ in range(2)]
    with stream(http, "/v1/stream", seen[-1].id) as events:
        seen += [next(events) for _ in range(3)]
    assert [event.data["subject"] for event in seen] == [job.id for job in jobs]


def test_a_stream_of_many_events_is_read_in_pieces(
    http: httpx.Client, queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_queue.gateway.routes.events._PAGE", 2)
    job = queue.submit(sample())
    move(queue, job, JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING)
    move(queue, job, JobState.SUCCEEDED)
    with stream(http, f"/v1/jobs/{job.id}/stream") as events:
        assert [event.id for event in events] == ["1", "2", "3", "4", "5", "6", "6"]


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/jobs/JOB/stream"])
@pytest.mark.parametrize("place", ["x", "-1", "1.5", "9" * 20, "1-2-3", "$", "+"])
def test_a_place_that_no_stream_gave_is_refused(
    http: httpx.Client, queue: FineTuneQueue, path: str, place: str
) -> None:
    job = queue.submit(sample())
    reply = http.get(path.replace("JOB", job.id), headers={"Last-Event-ID": place})
    assert (reply.status_code, reply.json()["errors"][0]["where"]) == (422, "last-event-id")


def test_a_stream_of_no_job_is_refused_before_it_starts(http: httpx.Client) -> None:
    assert http.get(f"/v1/jobs/{new_job_id()}/stream").status_code == 404


def test_a_stream_ends_when_only_a_newer_version_can_read_the_job(
    http: httpx.Client, queue: FineTuneQueue, client: redis.Redis
) -> None:
    job = queue.submit(sample())
    path = f"/v1/jobs/{job.id}/stream"
    with stream(http, path) as events:
        assert next(events).kind == "accepted"
        client.hset(keys.job(job.id), "state", "grading")
        move(queue, queue.submit(sample()), JobState.UPLOADING)
        client.rpush(keys.job_events(job.id), "{}")
        client.xadd(keys.events(), {"event": json.dumps({"subject": job.id})})
        assert list(events) == []
    reply = http.get(path)
    assert (reply.status_code, reply.json()["code"]) == (409, "job-unreadable")


def test_followers_hold_no_connection_to_redis(http: httpx.Client, queue: FineTuneQueue, client: Any, url: str) -> None:
    job = queue.submit(sample())
    before = len(client.client_list())
    with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as many:
        opened = [many.stream("GET", f"/v1/jobs/{job.id}/stream") for _ in range(20)]
        replies = [each.__enter__() for each in opened]
        for reply in replies:
            assert reply.status_code == 200
        lines = [reply.iter_lines() for reply in replies]
        for line in lines:
            next(text for text in line if text.startswith("data:"))
        # One for the hub, and those that its 8 threads used for a moment.
        assert len(client.client_list()) - before <= 12
        for each in opened:
            each.__exit__(None, None, None)


def test_there_are_only_so_many_followers(
    http: httpx.Client, queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_FOLLOWERS", 1)
    job = queue.submit(sample())
    with stream(http, f"/v1/jobs/{job.id}/stream") as events:
        next(events)
        refused = http.get("/v1/stream")
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert int(refused.headers["retry-after"]) > 0
    until(lambda: _opens(http), seconds=30)


def _opens(http: httpx.Client) -> bool:
    with http.stream("GET", "/v1/stream") as reply:
        return reply.status_code == 200


def test_a_stream_waits_for_a_redis_that_is_away_and_misses_nothing(
    make_settings: MakeSettings, start: Start, tmp_path: Path
) -> None:
    with ValkeyServer(tmp_path / "own") as valkey:
        settings = make_settings(finetune_redis_url=valkey.url)
        url = start(settings)
        with (
            FineTuneQueue(settings) as queue,
            httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as http,
        ):
            job = queue.submit(sample())
            with stream(http, f"/v1/jobs/{job.id}/stream") as events:
                assert next(events).kind == "accepted"
                valkey.stop()
                until(lambda: http.get("/readyz").status_code == 503, seconds=30)
                valkey.start()
                move(queue, job, JobState.UPLOADING, JobState.CANCELLED)
                assert [event.kind for event in events if event.event == "message"] == ["uploading", "cancelled"]


@pytest.mark.parametrize(
    "fields",
    [{"event": "no JSON"}, {"event": "[]"}, {"event": '{"subject": []}'}, {"event": b"\xff"}, {"other": "1"}],
    ids=["no JSON", "no object", "no subject", "no text", "no event"],
)
def test_what_is_no_event_does_not_keep_news_from_those_who_follow(
    http: httpx.Client, queue: FineTuneQueue, client: redis.Redis, fields: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LOOK_EVERY", 60.0)
    monkeypatch.setattr(hub, "_BLOCK", 0.1)  # after which the reader goes on
    job = queue.submit(sample())
    with stream(http, f"/v1/jobs/{job.id}/stream") as events, capture_logs() as logs:
        assert next(events).kind == "accepted"

        def told() -> bool:
            client.xadd(keys.events(), fields)  # again, as the gateway may not have looked for the newest one yet
            return "event_stream_unreadable" in [entry["event"] for entry in logs]

        until(told, seconds=30, pause=0.2)
        move(queue, job, JobState.UPLOADING, JobState.CANCELLED)
        assert [event.kind for event in events if event.event == "message"] == ["uploading", "cancelled"]


def test_a_thread_that_the_system_refuses_does_not_end_the_reader_of_events(
    http: httpx.Client, queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LOOK_EVERY", 60.0)
    monkeypatch.setattr(hub, "_BLOCK", 0.1)  # after which the reader goes on
    latest = Feed.latest
    refused: list[bool] = []

    def at_first_refused(feed: Feed) -> str:
        if not refused:
            refused.append(True)
            raise RuntimeError("can't start new thread")
        return latest(feed)

    monkeypatch.setattr(Feed, "latest", at_first_refused)
    job = queue.submit(sample())
    with stream(http, f"/v1/jobs/{job.id}/stream") as events:
        assert next(events).kind == "accepted"
        until(lambda: bool(refused), seconds=30)
        move(queue, job, JobState.UPLOADING, JobState.CANCELLED)
        assert [event.kind for event in events if event.event == "message"] == ["uploading", "cancelled"]


def test_streams_end_when_the_gateway_stops(
    settings: Settings, queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GRACE", 30)
    job = queue.submit(sample())
    with httpx.Client(headers=AUTH, timeout=30, trust_env=False) as http:
        with run_gateway(settings) as url:
            reply = http.send(http.build_request("GET", f"{url}/v1/jobs/{job.id}/stream"), stream=True)
            lines = reply.iter_lines()
            next(text for text in lines if text.startswith("data:"))
            stopping = time.monotonic()
        assert time.monotonic() - stopping < server.GRACE, "it did not have to be cut off"
        assert [text for text in lines if text and not text.startswith(":")] == [], "a whole end, not a broken one"
        reply.close()


def test_a_stream_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LIFETIME", 0.2)

    async def run() -> list[bytes]:
        found = hub.Hub(feed=None)  # type: ignore[arg-type]
        return [chunk async for chunk in found.stream("job", "0", lambda _place: hub.Batch([]))]

    chunks = asyncio.run(run())
    assert chunks[0] == b"retry: 2000\n\n"
    assert all(chunk.startswith(b":") for chunk in chunks[1:])

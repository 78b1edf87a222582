"""What a sink does not take for too long is given up: once, as one dead letter, and may be sent again."""

import json
import time
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobState, parse_sink
from finetune_queue.store import keys
from support.sinks import THREE, MakeDeliveries, Receiver, kinds, listed
from support.web import Answer


@pytest.mark.parametrize("status", [410, 500])
def test_what_is_not_taken_in_the_end_becomes_one_dead_letter_in_order(
    make: MakeDeliveries, client: redis.Redis, status: int
) -> None:
    """410 says never; 500 is tried until the limit."""
    bench = make(FINETUNE_SINK_LIMIT="0.3")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=status)] * 100
        job = bench.cancelled(reply_to=[receiver.url("/hook")])
        bench.until_done()
    rows: Any = client.xrange(keys.dead_letters())
    [(_, letter)] = rows
    assert (letter["kind"], letter["job_id"], letter["sink"]) == ("delivery", job.id, receiver.url("/…"))
    assert kinds(json.loads(letter["body"])) == THREE
    assert (len(receiver.seen) == 1) is (status == 410)
    assert bench.outbox.deliveries(job.id)[0].outcome == "dead"


def test_a_worker_whose_clock_is_wrong_gives_nothing_up_before_its_time(
    make: MakeDeliveries, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 48 * 3600)
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=500)]
        job = bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
        assert kinds(receiver.got) == ["accepted"]
    assert client.xlen(keys.dead_letters()) == 0
    assert [attempt.at_ms for attempt in bench.outbox.deliveries(job.id)] == pytest.approx([now * 1000] * 2, abs=60_000)


def test_what_waits_behind_a_sink_that_stays_down_is_given_up_too(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_SINK_LIMIT="0.3")
    with Receiver() as receiver:
        port = receiver.port
    jobs = [bench.job(reply_to=[f"http://127.0.0.1:{port}/hook"]) for _ in range(12)]
    bench.until_done()
    rows: Any = client.xrange(keys.dead_letters())
    assert {letter["job_id"] for _, letter in rows} == {job.id for job in jobs}
    assert len(rows) == 12


def test_one_attempt_gives_up_for_all_that_waited_too_long(make: MakeDeliveries, client: redis.Redis) -> None:
    """An attempt at a sink that hangs takes seconds, so that a thousand jobs cannot each have one."""
    bench = make(FINETUNE_SINK_LIMIT="0.1", FINETUNE_BACKOFF_BASE="0.4", FINETUNE_BACKOFF_MAX="0.4")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=503)] * 100
        for _ in range(40):
            bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
    assert client.xlen(keys.dead_letters()) == 40
    assert 4 <= len(receiver.seen) <= 8  # one or two for each of the four lines


def test_a_sink_is_not_given_up_for_how_long_another_made_the_job_wait(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="60", FINETUNE_BACKOFF_MAX="60")
    with Receiver() as receiver:
        job = bench.job(reply_to=[receiver.url("/hook"), receiver.url("/never")])
        bench.deliver()
        assert kinds(receiver.got) == ["accepted"]
        sink = parse_sink(receiver.url("/hook"))
        client.hset(keys.job_sinks(job.id), f"line:{sink.line(job.id)}", 1)  # for long
        receiver.refuse = [Answer(status=500)]
        bench.go(job, JobState.UPLOADING)
        bench.deliver()
        assert client.xlen(keys.dead_letters()) == 0


def test_news_of_a_job_whose_sink_gave_up_are_delivered(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_SINK_LIMIT="0.1")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=500)] * 100
        job = bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
        receiver.refuse = []
        bench.go(job, JobState.UPLOADING)
        bench.until_done()
    assert kinds(receiver.got) == ["uploading"]


def test_a_sink_that_said_never_again_is_not_asked_again_but_by_a_person(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make()
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=410)]
        job = bench.job(reply_to=[receiver.url("/hook"), "list://other"])
        bench.until_done()
        job = bench.go(job, JobState.UPLOADING, JobState.CANCELLED)
        bench.until_done()
        assert len(receiver.seen) == 1
        assert client.xlen(keys.dead_letters()) == 1
        assert kinds(listed(client, "other")) == THREE

        bench.outbox.redeliver(job.id)
        bench.until_done()
    assert kinds(receiver.got) == THREE

"""Events and jobs of a newer version in front of an older notifier: they reach their sinks, by it or by a newer one."""

import json
from typing import Any

import redis

from finetune_queue.contract import JobRecord
from finetune_queue.store import keys
from support.sinks import MakeDeliveries, kinds, listed
from support.until import until


def read(client: Any, name: str) -> list[str]:
    return kinds(listed(client, name))


def append_new_kind(client: Any, job: JobRecord) -> None:
    """Write an event as a newer version does: one of a kind that this version has never heard of."""
    event = json.loads(client.lindex(keys.job_events(job.id), -1))
    event |= {"id": f"{job.id}-2", "sequence": f"{2:010d}", "type": event["type"].replace("accepted", "graded")}
    client.rpush(keys.job_events(job.id), json.dumps(event))
    client.zadd(keys.outbox(), {job.id: 0})


def test_an_event_of_an_unknown_kind_goes_to_all_that_did_not_choose(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make()
    job = bench.job(reply_to=["list://changes", "list://all?events=all", "list://chosen?events=accepted"])
    append_new_kind(client, job)
    bench.until_done()
    assert read(client, "changes") == ["accepted", "graded"]
    assert read(client, "all") == ["accepted", "graded"]
    assert read(client, "chosen") == ["accepted"]
    assert [event.kind for event in bench.container.jobs.events(job.id)] == ["accepted", "graded"]


def test_a_job_that_cannot_be_read_keeps_its_place_until_it_can(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_SINKS="list://all", FINETUNE_LEASE="0.2")
    waiting = bench.job(reply_to=["list://mine"])
    client.hset(keys.job(waiting.id), "state", "grading")
    bench.notifier._line_up()  # in the outbox: neither the service's sinks nor its own are told
    lined_up = bench.job(reply_to=["list://mine"])
    bench.notifier._line_up()
    client.hset(keys.job(lined_up.id), "state", "grading")
    bench.deliver()  # in a line
    assert client.exists("mine", "all") == 0

    for job in (waiting, lined_up):
        client.hset(keys.job(job.id), "state", "accepted")
    bench.until_done()
    assert client.llen("mine") == client.llen("all") == 2


def test_events_for_a_sink_of_an_unknown_kind_keep_their_place_and_keep_nobody_up(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    """As of a dead letter of a newer version that somebody sends again."""
    bench = make(FINETUNE_LEASE="0.2")
    job = bench.job(reply_to=["list://mine"])
    event = str(client.lindex(keys.job_events(job.id), 0))
    bench.outbox.send_loose("0-new", [event], "kafka://host/topic")
    bench.outbox.send_loose("0-lined-up", [event], "list://mine")
    bench.notifier._line_up()
    client.hset(keys.job_sinks("0-lined-up"), "only", "kafka://host/topic")
    bench.deliver()

    assert read(client, "mine") == ["accepted"]
    assert client.zscore(keys.outbox(), "0-new") is not None
    assert [line.waiting for line in bench.lines.all()] == [1]

    for name in ("0-new", "0-lined-up"):
        client.hset(keys.job_sinks(name), "only", "list://mine")
    until(lambda: bench.deliver() == 0 and len(read(client, "mine")) >= 3, seconds=20)
    assert read(client, "mine") == ["accepted"] * 3

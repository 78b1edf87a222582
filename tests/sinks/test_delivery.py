"""How events get to sinks: all of them, in order, and again after a failure."""

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobState, parse_sink
from finetune_queue.store import HoldLostError, TaskCall, keys
from finetune_worker.delivery import deliver_line
from support.sinks import THREE, MakeDeliveries, Receiver, kinds, listed
from support.until import until
from support.web import Answer


def test_a_job_s_sinks_get_its_changes_in_order_and_the_service_s_own_too(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make(FINETUNE_SINKS="list://all stream://some?events=accepted,cancelled")
    job = bench.cancelled(reply_to=["list://mine"])
    other = bench.job()
    bench.until_done()

    mine = listed(client, "mine")
    assert [(event["subject"], event["sequence"]) for event in mine] == [(job.id, f"{n:010d}") for n in (1, 2, 3)]
    assert kinds(mine) == THREE
    assert [event["subject"] for event in listed(client, "all")].count(other.id) == 1
    rows: Any = client.xrange("some")
    assert kinds([json.loads(fields["event"]) for _, fields in rows if job.id in fields["event"]]) == [
        "accepted",
        "cancelled",
    ]
    texts: Any = client.lrange(keys.job_events(job.id), 0, -1)
    assert list(reversed(client.lrange("mine", 0, -1))) == texts


def test_without_a_sink_nothing_is_put_out(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make()
    bench.cancelled(reply_to=["list://x?events=failed"])
    assert client.exists(keys.outbox(), keys.wake_outbox()) == 0


def test_progress_is_told_to_those_who_asked(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make()
    job = bench.job(reply_to=["list://changes", "list://all?events=all"])
    bench.news(job)
    bench.until_done()
    assert kinds(listed(client, "changes")) == ["accepted"]
    assert kinds(listed(client, "all")) == ["accepted", "progress"]


def test_a_web_sink_gets_signed_cloudevents(make: MakeDeliveries) -> None:
    bench = make()
    with Receiver() as receiver:
        job = bench.cancelled(reply_to=[receiver.url("/hook?tenant=7&events=all")])
        bench.until_done()
    assert kinds(receiver.got) == THREE
    assert receiver.verified() == 3
    assert [headers["webhook-id"] for headers in receiver.got_headers] == [f"{job.id}-{n}" for n in (1, 2, 3)]
    assert {headers["content-type"] for headers in receiver.got_headers} == {
        "application/cloudevents+json; charset=utf-8"
    }
    assert [path for _, path in receiver.seen] == ["/hook?tenant=7"] * 3


def test_while_secrets_change_both_sign(make: MakeDeliveries) -> None:
    new = "whsec_" + "B" * 32
    with Receiver() as receiver:
        old = "whsec_" + "A" * 32
        bench = make(FINETUNE_SIGNING_SECRET=f'{{"http://127.0.0.1:{receiver.port}": "{new} {old}"}}')
        bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
    assert receiver.verified(new) == receiver.verified(old) == 1


@pytest.mark.parametrize("status", [302, 400, 500])
def test_what_a_sink_refuses_is_told_until_it_takes_it(make: MakeDeliveries, status: int) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="0.5", FINETUNE_BACKOFF_MAX="0.5")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=status)]
        job = bench.cancelled(reply_to=[receiver.url("/hook")])
        bench.deliver()
        [found] = bench.lines.troubles()
        assert found.refused_job == job.id
        assert str(status) in found.reason
        assert [line.failures for line in bench.lines.all()] == [0]
        until(lambda: bench.lines.view().lag > 0.2, seconds=30)
        bench.until_done()
    assert bench.lines.troubles() == []
    assert bench.lines.view().lag == 0


def test_a_refused_event_comes_again_before_the_next_one(make: MakeDeliveries) -> None:
    bench = make()
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=500), Answer(status=204), Answer(status=400), Answer(status=302)]
        job = bench.cancelled(reply_to=[receiver.url("/hook")])
        bench.until_done()
    assert kinds(receiver.got) == THREE
    attempts = [(row.event_id[-1], row.outcome, row.status) for row in reversed(bench.outbox.deliveries(job.id))]
    assert attempts == [
        ("1", "failed", 500),
        ("1", "delivered", 204),
        ("2", "failed", 400),
        ("2", "failed", 302),
        ("2", "delivered", 204),
        ("3", "delivered", 204),
    ]


def test_a_redirect_is_not_followed(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_SINK_LIMIT="0.1")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=307, headers={"Location": "/other"})] * 50
        bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
    assert {path for _, path in receiver.seen} == {"/hook"}


def test_one_refused_job_does_not_hold_up_the_others_of_its_line(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="30", FINETUNE_BACKOFF_MAX="30")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=500)]
        url = receiver.url("/hook")
        first = bench.job(reply_to=[url])
        bench.deliver()
        line = parse_sink(url).line(first.id)
        others = [bench.job(reply_to=[url])]
        while parse_sink(url).line(others[-1].id) != line:
            others.append(bench.job(reply_to=[url]))
        bench.deliver()
        assert {event["subject"] for event in receiver.got} == {job.id for job in others}


def test_a_sink_that_is_down_is_tried_once_for_all_and_the_others_get_theirs(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make(FINETUNE_SINKS="list://fine", FINETUNE_BACKOFF_BASE="30", FINETUNE_BACKOFF_MAX="30")
    with Receiver() as receiver:
        port = receiver.port
    dead = f"http://127.0.0.1:{port}/hook"
    jobs = [job for lane in range(4) for job in bench.jobs_in_lane(5, dead, lane)]
    while bench.deliver():
        pass
    assert {event["subject"] for event in listed(client, "fine")} == {job.id for job in jobs}
    tried = [job for job in jobs if any(row.outcome == "failed" for row in bench.outbox.deliveries(job.id))]
    lines = [line for line in bench.lines.all() if line.failures]
    assert len(tried) == len(lines) == 4
    assert sum(line.waiting for line in lines) == 20
    assert {line.reason for line in lines} == {f"http://127.0.0.1:{port}/… cannot be reached"}


def test_a_sink_that_comes_back_gets_everything_in_order(make: MakeDeliveries) -> None:
    bench = make()
    with Receiver() as receiver:
        gone, url = Answer(status=503), receiver.url("/hook")
        receiver.refuse = [gone] * 6
        jobs = [bench.cancelled(reply_to=[url]) for _ in range(8)]
        bench.until_done()
        for job in jobs:
            assert kinds([event for event in receiver.got if event["subject"] == job.id]) == THREE
    assert bench.lines.all() == []


def test_a_line_that_works_again_is_not_in_trouble_any_more(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="0.01", FINETUNE_BACKOFF_MAX="30")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=503)]
        bench.cancelled(reply_to=[receiver.url("/hook")])
        bench.deliver()
        assert [line.failures for line in bench.lines.all()] == [1]
        receiver.refuse = [Answer(status=204), *[Answer(status=500)] * 20]

        def put_off_alone() -> bool:
            bench.deliver()
            return len(receiver.got) == 1

        until(put_off_alone, seconds=30)
        assert [(line.failures, line.reason, line.waiting) for line in bench.lines.all()] == [(0, "", 1)]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept(make: MakeDeliveries, form: str) -> None:
    bench = make()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=429, headers={"Retry-After": "120" if form == "seconds" else date})]
        bench.job(reply_to=[receiver.url("/hook")])
        bench.deliver()
        [line] = bench.lines.all()
    seconds, _ = bench.container.jobs._redis.time()
    assert 110_000 < line.next_ms - seconds * 1000 <= 121_000


def test_a_new_job_need_not_wait_for_one_that_was_put_off(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="30", FINETUNE_BACKOFF_MAX="30")
    with Receiver() as receiver:
        url = receiver.url("/hook")
        receiver.refuse = [Answer(status=500)]
        first = bench.job(reply_to=[url])
        bench.deliver()
        bench.go(first, JobState.UPLOADING)  # news of the one that was put off do not bring it forward
        assert bench.deliver() <= 1
        assert receiver.got == []
        for _ in range(12):
            bench.job(reply_to=[url])
        bench.deliver()
    assert len(receiver.got) == 12


def test_a_worker_that_was_overtaken_cannot_write(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_LEASE="0.2")
    job = bench.cancelled(reply_to=["list://x"])
    bench.line_up()
    [old], _ = bench.outbox.take_lines(1, 0.05)
    until(lambda: bool(bench.outbox.take_lines(1, 60)[0]), seconds=30)
    subject = bench.outbox.subject(job.id)
    with pytest.raises(HoldLostError):
        bench.outbox.leave(old, subject, [parse_sink("list://x")])
    with pytest.raises(HoldLostError):
        bench.outbox.pass_over(old, {job.id: 1})
    with pytest.raises(HoldLostError):
        bench.outbox.settle(old)
    bench.outbox.put_back(old, 0.0)
    deliver_line(bench.container, old, threading.Event())
    assert bench.outbox.deliveries(job.id) == []
    assert [line.name for line in bench.lines.all()] == ["list://x"]


def test_a_repeat_carries_the_same_id(make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies after the delivery and before it wrote that down."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    bench = make()
    with Receiver() as receiver:
        job = bench.job(reply_to=[receiver.url("/hook")])
        bench.line_up()
        [hold], _ = bench.outbox.take_lines(1, 0.1)
        with monkeypatch.context() as patch:
            patch.setattr(bench.outbox, "attempted", die)
            with pytest.raises(SystemExit):
                deliver_line(bench.container, hold, threading.Event())
        bench.until_done()
    assert [headers["webhook-id"] for headers in receiver.got_headers] == [f"{job.id}-1"] * 2


def test_events_can_be_sent_again(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_SINKS="list://a")
    job = bench.cancelled(reply_to=["list://b"])
    bench.until_done()
    assert bench.outbox.redeliver(job.id, parse_sink("list://b").id) == [parse_sink("list://b").id]
    bench.until_done()
    assert kinds(listed(client, "b")) == THREE * 2
    assert kinds(listed(client, "a")) == THREE
    assert len(bench.outbox.redeliver(job.id)) == 2
    assert bench.outbox.redeliver("no-such-job") == []


def test_a_redelivery_begins_the_time_anew_after_which_a_sink_is_given_up(
    make: MakeDeliveries, client: redis.Redis
) -> None:
    bench = make(FINETUNE_SINK_LIMIT="60")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=204), *[Answer(status=500)] * 2]
        job = bench.cancelled(reply_to=[receiver.url("/hook")])
        bench.deliver()
        sink = parse_sink(receiver.url("/hook"))
        long_ago = {f"{sink.id}:since": 1, f"line:{sink.line(job.id)}": 1}
        client.hset(keys.job_sinks(job.id), mapping=long_ago)  # type: ignore[arg-type]

        bench.outbox.redeliver(job.id)
        bench.until_done()
    assert client.xlen(keys.dead_letters()) == 0
    assert [attempt.outcome for attempt in bench.outbox.deliveries(job.id)].count("failed") == 2
    assert kinds(receiver.got)[-3:] == THREE


def test_a_redelivery_during_a_delivery_is_not_lost(make: MakeDeliveries) -> None:
    bench = make()
    with Receiver() as receiver:
        job = bench.cancelled(reply_to=[receiver.url("/hook")])

        def again(handler: Any) -> None:
            bench.outbox.redeliver(job.id)
            handler.send_response(204)
            handler.end_headers()

        receiver.refuse = [Answer(status=204), Answer(status=204), again]
        bench.until_done()
    assert kinds(receiver.got)[2:] == THREE


def test_a_redelivery_just_after_the_last_delivery_is_not_lost(
    make: MakeDeliveries, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    job = bench.job(reply_to=["list://x"])
    leave = bench.outbox.leave

    def between(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(bench.outbox, "leave", leave)
        bench.outbox.redeliver(job.id)
        bench.line_up()
        leave(*args, **options)

    monkeypatch.setattr(bench.outbox, "leave", between)
    bench.until_done()
    assert kinds(listed(client, "x")) == ["accepted", "accepted"]


def test_an_event_that_comes_during_a_delivery_is_not_lost(make: MakeDeliveries) -> None:
    bench = make()
    with Receiver() as receiver:
        job = bench.job(reply_to=[receiver.url("/hook")])

        def meanwhile(handler: Any) -> None:
            bench.go(job, JobState.UPLOADING, JobState.CANCELLED)
            bench.line_up()
            handler.send_response(204)
            handler.end_headers()

        receiver.refuse = [meanwhile]
        bench.until_done()
    assert kinds(receiver.got) == ["uploading", "cancelled"]


def test_a_job_is_kept_until_its_sinks_have_its_events(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_RETENTION="0.001", FINETUNE_BACKOFF_MAX="0.1")
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=500)] * 3
        job = bench.cancelled(reply_to=[receiver.url("/hook")])
        other = bench.cancelled()
        until(lambda: bench.container.retention.forget_finished() == 1, seconds=30)
        assert bench.container.jobs.get_many([job.id, other.id]) == [job]
        bench.deliver()
        assert bench.container.retention.forget_finished() == 0
        bench.until_done()
        assert kinds(receiver.got) == THREE
    assert bench.container.retention.forget_finished() == 1
    assert [name for name in client.scan_iter(f"*{job.id}*")] == []  # noqa: C416


def test_a_rejected_message_is_told_to_the_service_s_own_sinks(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_SINKS="list://all")
    bench.container.rejections.add("message-1", TaskCall([], {}), "broken", ["it is no JSON"])
    bench.until_done()
    [event] = listed(client, "all")
    assert (kinds([event]), event["data"]["problems"]) == (["rejected"], ["it is no JSON"])
    assert list(client.scan_iter("*message-1*")) == []


def test_a_list_that_nobody_reads_does_not_fill_the_server(
    make: MakeDeliveries, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_queue.store.local_queues.MOST_WAITING", 2)
    bench = make()
    bench.cancelled(reply_to=["list://full"])
    bench.deliver()
    assert client.llen("full") == 2
    [line] = bench.lines.all()
    assert "nobody consumes" in line.reason
    client.rpop("full")
    bench.until_done()
    assert kinds(listed(client, "full")) == ["uploading", "cancelled"]


def test_a_name_that_is_something_else_is_said(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make()
    client.set("taken", "x")
    job = bench.job(reply_to=["list://taken"])
    bench.deliver()
    assert "WRONGTYPE" in bench.outbox.deliveries(job.id)[0].detail

"""A path that hangs or breaks off at a host whose other paths are well: those get their events, and it alone waits."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobRecord, JobState, parse_sink
from finetune_queue.store import Hold, Standing, keys
from support.sinks import THREE, Deliveries, MakeDeliveries, Receiver, kinds
from support.until import until
from support.web import Answer


def break_off(handler: BaseHTTPRequestHandler) -> None:
    """Take the request and hang up, as a proxy does whose server for this path is not there."""
    handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.close_connection = True


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        running.routes["/close"] = break_off
        running.routes["/busy"] = Answer(status=503, headers={"Retry-After": "3000"}, methods=("POST",))
        yield running


def asked(receiver: Receiver, path: str) -> int:
    return sum(1 for _, seen in receiver.seen if seen.startswith(path))


def got(receiver: Receiver) -> set[str]:
    return {event["subject"] for event in receiver.got}


def ids(jobs: list[JobRecord]) -> set[str]:
    return {job.id for job in jobs}


def deliver_until_got(bench: Deliveries, receiver: Receiver, jobs: list[JobRecord], seconds: float = 20) -> None:
    def all_there() -> bool:
        bench.deliver()
        return ids(jobs) <= got(receiver)

    until(all_there, seconds=seconds)


def line_up(bench: Deliveries) -> None:
    """Move all of the outbox into lines: a pass takes some of it."""

    def empty() -> bool:
        bench.line_up()
        return not bench.container.jobs._redis.exists(keys.outbox())

    until(empty, seconds=20)


def failed(bench: Deliveries, jobs: list[JobRecord]) -> int:
    rows = [row for job in jobs for row in bench.outbox.deliveries(job.id)]
    return sum(row.outcome == "failed" for row in rows)


@pytest.mark.parametrize("path", ["/close", "/busy"])
def test_a_path_that_does_not_answer_delays_no_other_of_its_host(
    make: MakeDeliveries, receiver: Receiver, path: str
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="0.1", FINETUNE_BACKOFF_MAX="0.4")
    bad = bench.jobs_in_lane(20, receiver.url(path))
    good = bench.jobs_in_lane(5, receiver.url("/hook"))
    deliver_until_got(bench, receiver, good)
    assert asked(receiver, path) <= 2, "one attempt tells of all that wait for the path"
    later = bench.jobs_in_lane(1, receiver.url("/hook"))
    deliver_until_got(bench, receiver, later)
    [line] = bench.lines.all()
    assert line.waiting == len(bad)
    assert line.failures <= 1, "the failures in a row ended with a good answer"


def test_what_took_the_request_and_hung_up_is_not_called_out_of_reach(make: MakeDeliveries, receiver: Receiver) -> None:
    bench = make()
    job = bench.job(reply_to=[receiver.url("/close")])
    bench.deliver()
    said = f"http://127.0.0.1:{receiver.port}/… broke the connection off without an answer"
    assert [row.detail for row in bench.outbox.deliveries(job.id)] == [said]


def test_a_job_that_comes_while_only_put_off_ones_wait_is_tried(make: MakeDeliveries, receiver: Receiver) -> None:
    bench = make()
    bench.jobs_in_lane(3, receiver.url("/busy"))
    bench.deliver()
    seconds, _ = bench.container.jobs._redis.time()
    [line] = bench.lines.all()
    assert line.next_ms - seconds * 1000 > 2_000_000, "it asked for that"
    deliver_until_got(bench, receiver, bench.jobs_in_lane(1, receiver.url("/hook")))
    assert asked(receiver, "/busy") == 1


def test_a_job_s_other_sink_at_the_same_host_gets_its_events_in_order(make: MakeDeliveries, receiver: Receiver) -> None:
    bench = make()
    job = bench.cancelled(reply_to=[receiver.url("/close"), receiver.url("/hook")])
    deliver_until_got(bench, receiver, [job])
    until(lambda: bench.deliver() >= 0 and len(receiver.got) == 3, seconds=20)
    assert kinds(receiver.got) == THREE
    receiver.routes["/close"] = receiver.routes["/hook"]
    bench.until_done()
    assert kinds(receiver.got[3:]) == THREE


def test_news_do_not_wait_until_a_job_s_other_sink_may_be_tried_again(make: MakeDeliveries, receiver: Receiver) -> None:
    bench = make()
    job = bench.job(reply_to=[receiver.url("/busy"), receiver.url("/hook")])
    deliver_until_got(bench, receiver, [job])
    bench.deliver()

    bench.go(job, JobState.UPLOADING, JobState.CANCELLED)

    until(lambda: bench.deliver() >= 0 and len(receiver.got) == 3, seconds=20)
    assert kinds(receiver.got) == THREE
    assert asked(receiver, "/busy") == 1, "it asked for an hour"


def test_news_that_come_while_a_job_s_other_sink_refuses_do_not_wait_for_that(
    make: MakeDeliveries, receiver: Receiver
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="60", FINETUNE_BACKOFF_MAX="60")
    job = bench.job(reply_to=[receiver.url("/hook"), receiver.url("/other")])

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        if bench.container.jobs.get(job.id).state is JobState.ACCEPTED:
            bench.go(job, JobState.UPLOADING)
            bench.line_up()  # as another worker does
        handler.send_response(500)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    receiver.routes["/other"] = refuse
    until(lambda: bench.deliver() >= 0 and len(receiver.got) == 2, seconds=20)
    assert kinds(receiver.got) == ["accepted", "uploading"]
    assert asked(receiver, "/other") == 1, "it is to be tried in a minute"


def test_paths_that_do_not_answer_take_turns_with_one_attempt_at_a_time(
    make: MakeDeliveries, receiver: Receiver
) -> None:
    """However many jobs wait, and for however many paths, there is one attempt for each time that the line rests."""
    bench = make(FINETUNE_BACKOFF_BASE="0.1", FINETUNE_BACKOFF_MAX="0.2")
    names = "abc"
    for name in names:
        bench.jobs_in_lane(60, receiver.url(f"/close?{name}"))
    line_up(bench)
    passes = 0

    def all_tried_twice() -> bool:
        nonlocal passes
        passes += bench.deliver()
        return all(asked(receiver, f"/close?{name}") >= 2 for name in names)

    until(all_tried_twice, seconds=20)
    assert [path[-1] for _, path in receiver.seen[:3]] == list(names)
    assert len(receiver.seen) <= passes
    [line] = bench.lines.all()
    assert line.failures == len(receiver.seen)


def test_thousands_behind_one_path_cost_an_attempt_and_a_few_round_trips(
    make: MakeDeliveries, client: redis.Redis, receiver: Receiver
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="60", FINETUNE_BACKOFF_MAX="60")
    jobs = bench.jobs_in_lane(300, receiver.url("/close"))
    line_up(bench)
    before: Any = client.info("stats")
    bench.deliver()
    after: Any = client.info("stats")
    assert asked(receiver, "/close") == failed(bench, jobs) == 1
    commands = after["total_commands_processed"] - before["total_commands_processed"]
    assert commands < 4 * len(jobs), "two reads for each job, no script for one alone"
    assert bench.deliver() == 0


def test_a_wait_that_is_over_before_all_were_put_off_is_not_walked_round_for_ever(
    make: MakeDeliveries, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="0.1", FINETUNE_BACKOFF_MAX="0.1")
    bench.jobs_in_lane(3, receiver.url("/close"))
    pass_over, rounds = bench.outbox.pass_over, list[int]()

    def slowly(hold: Hold, times: dict[str, int]) -> None:
        pass_over(hold, times)
        rounds.append(len(times))
        until(lambda: bench.container.deadlines.now_ms() > max(times.values(), default=0), seconds=20)

    monkeypatch.setattr(bench.outbox, "pass_over", slowly)
    bench.deliver()
    assert asked(receiver, "/close") == 1
    assert rounds == [3, 3]


def test_where_there_is_no_connection_one_attempt_is_for_all_paths(make: MakeDeliveries, client: redis.Redis) -> None:
    bench = make(FINETUNE_SINK_LIMIT="0.3", FINETUNE_BACKOFF_BASE="0.8", FINETUNE_BACKOFF_MAX="0.8")
    with Receiver() as closed:
        url = closed.url("/hook")
    jobs = [job for number in range(12) for job in bench.jobs_in_lane(1, f"{url}?{number}")]
    line_up(bench)
    attempts = 0

    def given_up() -> bool:
        nonlocal attempts
        attempts += bench.deliver()
        return client.xlen(keys.dead_letters()) == len(jobs)

    until(given_up, seconds=20)
    assert attempts <= 2


def test_nothing_is_given_up_that_was_not_tried(make: MakeDeliveries, client: redis.Redis, receiver: Receiver) -> None:
    """An attempt at one path says nothing of another; of the same path it tells for all."""
    bench = make(FINETUNE_SINK_LIMIT="0.2", FINETUNE_BACKOFF_BASE="0.3", FINETUNE_BACKOFF_MAX="0.3")
    paths = [f"/close?{number}" for number in range(4)]
    bad = [job for path in paths for job in bench.jobs_in_lane(30, receiver.url(path))]
    good = bench.jobs_in_lane(3, receiver.url("/hook"))
    bench.until_done(seconds=20)
    rows: Any = client.xrange(keys.dead_letters())
    assert {letter["job_id"] for _, letter in rows} == ids(bad)
    assert got(receiver) == ids(good)
    assert {path for _, path in receiver.seen} == {*paths, "/hook"}
    assert len(receiver.seen) < 30


def test_a_place_where_others_answer_is_not_out_of_reach(make: MakeDeliveries, receiver: Receiver) -> None:
    """Also if they have other lanes, in which nobody waits any more."""
    bench = make()
    [bad] = bench.jobs_in_lane(1, receiver.url("/close"), lane=1)
    bench.deliver()
    assert [(each.sink, each.refused_job) for each in bench.lines.troubles()] == [(receiver.url().rstrip("/"), None)]
    assert bench.lines.view().down == 1
    deliver_until_got(bench, receiver, bench.jobs_in_lane(1, receiver.url("/hook"), lane=2))
    [trouble] = bench.lines.troubles()
    assert (trouble.sink, trouble.refused_job) == (receiver.url("/…"), bad.id)
    assert (bench.lines.view().down, bench.lines.view().up) == (0, 1)
    until(lambda: bench.lines.view().lag > 0.2, seconds=20)


def test_a_sink_that_nothing_waits_for_any_more_is_in_no_trouble(
    make: MakeDeliveries, client: redis.Redis, receiver: Receiver
) -> None:
    bench = make(FINETUNE_SINK_LIMIT="0.1")
    bench.jobs_in_lane(1, receiver.url("/close"))
    receiver.refuse = [Answer(status=500)] * 1000
    refused = bench.jobs_in_lane(1, receiver.url("/hook"))
    bench.deliver()

    def given_up() -> bool:
        client.hset(keys.job_sinks(refused[0].id), f"{parse_sink(receiver.url('/hook')).id}:since", 9 * 10**15)
        bench.deliver()
        return {each.refused_job for each in bench.lines.troubles()} == ids(refused)

    until(given_up, seconds=20)
    assert client.xlen(keys.dead_letters()) == 1


def test_a_line_with_a_path_that_may_hang_again_takes_a_place_of_those_in_trouble(
    make: MakeDeliveries, receiver: Receiver
) -> None:
    bench = make(FINETUNE_BACKOFF_BASE="0.2", FINETUNE_BACKOFF_MAX="0.2")
    bench.jobs_in_lane(1, receiver.url("/close"))
    bench.deliver()

    def due() -> Hold:
        holds: list[Hold] = []

        def taken() -> bool:
            holds.extend(bench.outbox.take_lines(1, 20)[0])
            return bool(holds)

        until(taken, seconds=20)
        return holds[0]

    bench.outbox.settle(due(), reached=True)  # by another sink
    hold = due()
    assert (hold.failures, hold.standing) == (0, Standing.DOUBTFUL)

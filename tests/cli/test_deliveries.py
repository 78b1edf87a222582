"""``finetune deliveries`` and ``redeliver``, sinks in ``doctor``, and dead deliveries sent again."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import parse_sink
from finetune_queue.messaging import producer_app
from finetune_queue.settings import load_settings
from finetune_worker.container import Container
from support.cli import Run
from support.sinks import SECRET, THREE, Deliveries, Receiver, kinds
from support.web import Answer


@pytest.fixture
def bench(queue_url: str, client: redis.Redis, tmp_path: Path) -> Iterator[Deliveries]:
    """A worker that delivers, on the queue that the command line uses."""
    settings = load_settings(
        {
            "SEGMIND_API_KEY": "SG_0123456789abcdef",
            "SEGMIND_BASE_URL": "http://127.0.0.1:9",
            "FINETUNE_REDIS_URL": queue_url,
            "FINETUNE_ARTIFACT_URL": f"file://{tmp_path}/artifacts",
            "FINETUNE_SIGNING_SECRET": SECRET,
        }
    )
    container = Container.build(settings, producer_app(settings))
    yield Deliveries(container, client)
    container.close()


def test_attempts_are_shown(run: Run, bench: Deliveries) -> None:
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=204), Answer(status=500)]
        job = bench.cancelled(reply_to=[receiver.url("/hook?token=hidden")])
        bench.deliver()
    said = run("deliveries", job.id)
    assert said.code == ExitCode.OK
    waits, newest, oldest = said.out.splitlines()
    sink = parse_sink(receiver.url("/hook?token=hidden"))
    assert waits.startswith(f"2 events wait for {sink.shown} [{sink.id}], next try in ")
    assert waits.endswith(": answered with status 500")
    assert f"event 2 failed (500) to {receiver.url('/…')}" in newest
    assert "event 1 delivered (204)" in oldest
    assert "hidden" not in said.out
    wait, *rows = run("deliveries", job.id, "--json").json
    assert (wait["outcome"], wait["events"], wait["event"], wait["sink_id"]) == ("waiting", 2, f"{job.id}-2", sink.id)
    assert datetime.fromisoformat(wait["next_try"]) > datetime.fromisoformat(rows[0]["time"])
    assert [(row["event"], row["outcome"]) for row in rows] == [(f"{job.id}-2", "failed"), (f"{job.id}-1", "delivered")]


def test_what_waits_behind_another_is_said_with_the_reason(
    run: Run, bench: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no event of the job was tried, where nobody has come to it, and for sinks that others have set."""
    with Receiver() as receiver:
        url = receiver.url("/hidden")
    bench.jobs_in_lane(1, url)
    [job] = bench.jobs_in_lane(1, url)
    assert run("deliveries", job.id).out.endswith(", not yet picked up by a worker\n")
    bench.deliver()
    [said] = run("deliveries", job.id).out.splitlines()
    assert said.startswith(f"1 event waits for {receiver.url('/…')} [")
    assert said.endswith(": cannot be reached")
    assert "next_try" in run("deliveries", job.id, "--json").json[0]

    monkeypatch.setattr(bench.container.sinks, "own", (parse_sink("list://ours"),))
    job = bench.job(reply_to=["list://mine"])
    bench.line_up()
    assert [line.partition(",")[0] for line in run("deliveries", job.id).out.splitlines()] == [
        f"1 event waits for list://mine [{parse_sink('list://mine').id}]",
        "Events wait for list://ours",
    ]
    bench.deliver()
    assert "wait" not in run("deliveries", job.id).out


def test_a_job_without_deliveries_says_so(run: Run, bench: Deliveries) -> None:
    assert "Nothing has been delivered yet" in run("deliveries", bench.job().id).out
    assert run("deliveries", "no-such-job").code == ExitCode.NOT_FOUND


@pytest.mark.parametrize("by_id", [True, False])
def test_events_are_sent_again(run: Run, bench: Deliveries, client: redis.Redis, by_id: bool) -> None:  # noqa: FBT001
    job = bench.cancelled(reply_to=["list://a", "list://b"])
    bench.until_done()
    sink = parse_sink("list://a").id if by_id else "list://a"
    assert "to 1 sink." in run("redeliver", job.id, "--sink", sink).out
    bench.until_done()
    assert (client.llen("a"), client.llen("b")) == (6, 3)
    assert run("redeliver", job.id.upper(), "--json").json == {"job_id": job.id, "sinks": 2}
    bench.until_done()
    assert (client.llen("a"), client.llen("b")) == (9, 6)


def test_a_sink_that_never_had_anything_cannot_have_it_again(run: Run, bench: Deliveries) -> None:
    job = bench.job()
    assert run("redeliver", job.id).code == ExitCode.CONFLICT
    said = run("redeliver", job.id, "--sink", "ftp://x")
    assert (said.code, "--sink is not a known kind of sink" in said.err) == (ExitCode.USAGE, True)


def test_a_sink_that_is_down_is_reported(run: Run, bench: Deliveries) -> None:
    def finding() -> Any:
        checks = run("doctor", "--json").json["checks"]
        return next((check["status"], check["message"]) for check in checks if check["name"] == "sinks")

    with Receiver() as receiver:
        url = receiver.url("/hidden")
    assert finding() == ("ok", "no sink is out of reach or refuses events")
    bench.job(reply_to=[url])
    bench.deliver()
    assert "1 job waits" in finding()[1]
    for _ in range(8):
        bench.job(reply_to=[url])
    bench.deliver()
    status, message = finding()
    assert (status, "9 jobs wait" in message, "hidden" in message) == ("warn", True, False)


def test_dead_deliveries_are_sent_again_in_order(run: Run, bench: Deliveries, client: Any) -> None:
    with Receiver() as receiver:
        receiver.refuse = [Answer(status=410)]
        job = bench.cancelled(reply_to=[receiver.url("/hook?token=hidden")])
        bench.until_done()
        assert receiver.got == []
        [letter] = run("dead", "list", "--json").json
        assert (letter["kind"], letter["job_id"], "hidden" in json.dumps(letter)) == ("delivery", job.id, False)
        run("dead", "replay", letter["id"])
        bench.until_done()
        assert kinds(receiver.got) == THREE
    assert run("dead", "list", "--json").json == []
    assert list(client.scan_iter("*replayed*")) == []


def test_the_request_s_sinks_are_options_too(run: Run, queue_url: str) -> None:
    required = ["--name", "x", "--prompt", "1MAN", "--trigger-word", "1MAN", "--dataset", "https://h.example/x.zip"]
    said = run("submit", *required, "--reply-to", "list://a", "--reply-to", "stream://b", "--json")
    assert said.json["request"]["reply_to"] == ["list://a", "stream://b"]
    assert run("submit", *required, "--reply-to", "ftp://a").code == ExitCode.USAGE

"""``finetune doctor``: what it finds, what it advises, and its exit code."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue import __version__
from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import new_job_id, parse_sink
from finetune_queue.local.valkey import free_port
from finetune_queue.messaging import QUEUE, RUN, TRANSFER_QUEUE, Answered, Messenger, producer_app
from finetune_queue.settings import load_settings
from finetune_queue.store import (
    Attempt,
    Hold,
    LiveWorker,
    Outbox,
    SinkLines,
    Workers,
    clock_skew,
    connect,
    keys,
)
from support.cli import Run, Worker, checks
from support.until import until


def _version(url: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.info("server")["valkey_version"])


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
def test_a_reader_of_the_gateway_without_a_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it the gateway does not start."""
    monkeypatch.setenv("FINETUNE_GATEWAY_READERS", "promethius")
    found = checks(run("doctor", "--json"))["settings"]
    assert found["status"] == "fail"
    assert "FINETUNE_GATEWAY_READERS: there is no token for promethius" in found["message"]
    assert "finetune gateway token NAME" in found["action"]


@pytest.mark.usefixtures("queue_url")
def test_a_sink_without_a_secret_to_sign_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it a worker does not start; without a key there is none here."""
    monkeypatch.setenv("FINETUNE_SINKS", "https://127.0.0.1:1/hook")
    assert checks(run("doctor", "--json"))["settings"]["status"] == "ok"
    monkeypatch.setenv("SEGMIND_API_KEY", "SG_0123456789abcdef")
    found = checks(run("doctor", "--json"))["settings"]
    assert found["status"] == "fail"
    assert found["message"].startswith("FINETUNE_SIGNING_SECRET: missing, and https://127.0.0.1:1/… in FINETUNE_SINKS")


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


@contextmanager
def _answering(queue: str) -> Iterator[None]:
    """Answer as a worker does that was given no name of its own."""
    done = threading.Event()
    with producer_app(load_settings()) as app, app.connection_for_read() as connection:
        control: Any = app.control
        node = control.mailbox.Node(
            hostname="celery@vm",
            channel=connection.default_channel,
            handlers={"registered": lambda _: [RUN], "active_queues": lambda _: [{"name": queue}]},
        )

        def serve() -> None:
            with node.listen(callback=node.handle_message):
                while not done.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@pytest.mark.usefixtures("queue_url")
def test_two_workers_with_one_name_are_two(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of one for each queue, started side by side as the doctor says itself."""
    monkeypatch.setattr("finetune_queue.cli.doctor.PING_SECONDS", 0.5)
    with _answering(QUEUE):
        until(lambda: "finetune.transfer" in checks(run("doctor", "--json"))["workers"]["message"], seconds=10)
        with _answering(TRANSFER_QUEUE):
            until(lambda: checks(run("doctor", "--json"))["workers"]["status"] == "ok", seconds=10)
            assert checks(run("doctor", "--json"))["workers"]["message"] == "2 alive: celery@vm, celery@vm"


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
        monkeypatch.setenv("FINETUNE_BROKER_URL", queue_url.replace("127.0.0.1", "localhost"))
        other = checks(run("doctor", "--json"))["workers"]
    assert (same["status"], other["status"]) == ("warn", "fail")
    assert "FINETUNE_BROKER_URL" not in same["message"]
    assert ", or their FINETUNE_BROKER_URL is another than here" in other["message"]
    for found in (same, other):
        assert found["message"].endswith("; without this service's tasks, so not counted: celery@vm")


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
@pytest.mark.parametrize("host", ["hooks..example.com", f"{'x' * 64}.example.com"])
def test_a_sink_whose_name_none_can_have_is_knocked_at_in_vain(
    run: Run, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("FINETUNE_SINKS", f"amqp://{host}/?queue=q")
    [check] = [each for each in run("doctor", "--json").json["checks"] if each["name"] == "sink"]
    assert check["status"] == "warn"
    assert check["message"].startswith(f"amqp://{host}/ accepts no connection from here: ")


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

"""Ways out through brokers: Celery tasks on our own, and queues on a real RabbitMQ and on another Redis."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection

from finetune_queue.contract import JobState
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import transport_config
from finetune_queue.store import Change, connect
from finetune_worker.sinks import DeliveryError
from support.rabbitmq import RabbitMQ, find_rabbitmq
from support.sinks import THREE, MakeDeliveries, Receiver, kinds
from support.switch import Switch
from support.until import until


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    script = find_rabbitmq()
    if script is None:
        pytest.skip("no RabbitMQ is installed here (on Debian: apt-get install rabbitmq-server)")
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), script) as server:
        yield server


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a broker that is not ours: RabbitMQ, or another Redis."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("rabbitmq").url
        return
    with ValkeyServer(tmp_path / "other") as server:
        yield server.url


both = pytest.mark.parametrize("broker", ["rabbitmq", "redis"], indirect=True)


def taken(url: str, queue: str, count: int) -> list[Any]:
    """Take messages from a queue as a kombu consumer does."""
    with Connection(url, connect_timeout=30) as connection, connection.SimpleQueue(queue) as box:
        messages = [box.get(timeout=30) for _ in range(count)]
        for message in messages:
            message.ack()
        return messages


@both
def test_a_queue_on_somebody_else_s_broker_gets_the_event_as_it_is(make: MakeDeliveries, broker: str) -> None:
    queue = f"results-{broker.partition(':')[0]}"
    bench = make(FINETUNE_SINKS=f"{broker}?queue={queue}")
    job = bench.cancelled()
    bench.until_done()
    messages = taken(broker, queue, 3)
    assert kinds([message.payload for message in messages]) == THREE
    assert [message.properties["message_id"] for message in messages] == [f"{job.id}-{n}" for n in (1, 2, 3)]
    assert messages[0].content_type == "application/json"
    texts = bench.outbox.subject(job.id).events
    body = messages[0].body
    assert (body if isinstance(body, str) else bytes(body).decode()) == texts[0]


@both
def test_a_celery_service_on_another_broker_gets_a_task(make: MakeDeliveries, broker: str) -> None:
    bench = make(FINETUNE_SINKS=f"{broker}?queue=orders&task=orders.finetuned&events=cancelled")
    job = bench.cancelled()
    bench.until_done()
    [message] = taken(broker, "orders", 1)
    args, kwargs, _ = message.payload
    assert (message.headers["task"], message.headers["id"], kwargs) == ("orders.finetuned", f"{job.id}-3", {})
    assert kinds(args) == ["cancelled"]
    assert message.content_type == "application/json"


def test_a_python_service_on_our_broker_gets_a_task(make: MakeDeliveries) -> None:
    """Its own app, with the transport's settings that the contract asks of everybody on this broker."""
    bench = make()
    job = bench.cancelled(reply_to=["celery://shop/shop.tasks.finetuned"])
    bench.until_done()
    got: list[Any] = []
    app = Celery("shop", set_as_current=False)
    app.conf.update(transport_config(bench.container.settings), task_default_queue="shop", worker_disable_prefetch=True)

    @app.task(name="shop.tasks.finetuned", bind=True, shared=False)
    def finetuned(self: Any, event: dict[str, Any]) -> None:
        got.append((self.request.id, event))

    with start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=30):
        until(lambda: len(got) == 3, seconds=15)
    assert kinds([event for _, event in got]) == THREE
    assert [task_id for task_id, _ in got] == [event["id"] for _, event in got] == [f"{job.id}-{n}" for n in (1, 2, 3)]


def test_what_brings_an_event_has_the_trace_of_its_job_as_a_header(make: MakeDeliveries, redis_url: str) -> None:
    """There instrumentations of HTTP, Celery and brokers look for it; a stream or a list has the event alone."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with Receiver() as receiver:
        brokers = f"{redis_url}?queue=plain {redis_url}?queue=tasks&task=a.done celery://shop/shop.done"
        bench = make(FINETUNE_SINKS=f"{brokers} {receiver.url('/hook')}")
        untraced = bench.job()
        bench.until_done()
        bench.container.jobs.transition(untraced, Change(delay=60), to=JobState.UPLOADING, traceparent=trace)
        bench.until_done()
    sent = [headers.get("traceparent") for headers in receiver.got_headers]
    assert sent == [None, trace]
    for queue in ("plain", "tasks", "{finetune}:shop"):
        before, after = (message.headers for message in taken(redis_url, queue, 2))
        assert "traceparent" not in before
        assert after["traceparent"] == trace, queue


def test_a_queue_that_is_there_with_other_properties_is_used(make: MakeDeliveries, rabbitmq: RabbitMQ) -> None:
    with Connection(rabbitmq.url) as connection:
        owner: Any = connection.channel()
        owner.queue_declare("quorum", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    bench = make(FINETUNE_SINKS=f"{rabbitmq.url}?queue=quorum")
    bench.cancelled()
    bench.until_done()
    with Connection(rabbitmq.url) as connection:
        channel: Any = connection.channel()
        found: list[str] = []

        def count() -> bool:
            message = channel.basic_get("quorum", no_ack=True)
            if message is not None:
                found.append(json.loads(message.body)["type"])
            return len(found) == 3

        until(count, seconds=30)


def test_what_the_broker_does_not_confirm_is_not_delivered(make: MakeDeliveries, rabbitmq: RabbitMQ) -> None:
    with Connection(rabbitmq.url) as connection:
        owner: Any = connection.channel()
        limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
        owner.queue_declare("short", durable=True, auto_delete=False, arguments=limits)
    bench = make(FINETUNE_SINKS=f"{rabbitmq.url}?queue=short")
    job = bench.go(bench.job(), JobState.UPLOADING)
    bench.deliver()
    newest, oldest = bench.outbox.deliveries(job.id)
    assert (oldest.outcome, newest.outcome, newest.event_id) == ("delivered", "failed", f"{job.id}-2")
    assert "MessageNacked" in newest.detail
    with Connection(rabbitmq.url) as connection:
        consumer: Any = connection.channel()
        consumer.queue_purge("short")
    bench.until_done()


def test_a_wrong_password_is_said_and_not_shown(make: MakeDeliveries, rabbitmq: RabbitMQ) -> None:
    url = rabbitmq.url.replace("guest:guest", "guest:hidden-pw")
    bench = make(FINETUNE_SINKS=f"{url}?queue=x")
    job = bench.job()
    bench.deliver()
    [line] = bench.lines.all()
    assert "ACCESS_REFUSED" in line.reason
    assert "hidden-pw" not in json.dumps([attempt.as_dict() for attempt in bench.outbox.deliveries(job.id)])


def test_a_broker_that_comes_back_gets_everything_in_order(make: MakeDeliveries, tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "other")
    with server:
        pass  # it has its port now, and is down
    bench = make(FINETUNE_SINKS=f"{server.url}?queue=late list://fine")
    job = bench.go(bench.job(), JobState.UPLOADING)
    bench.deliver()
    assert [line.failures for line in bench.lines.all()] == [1]
    bench.go(job, JobState.CANCELLED)
    bench.deliver()
    with server:
        bench.until_done()
        assert kinds([message.payload for message in taken(server.url, "late", 3)]) == THREE


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_says_nothing_is_tried_once(make: MakeDeliveries, scheme: str) -> None:
    """Twice took longer than the line is held, so that nothing of it was ever written down."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/?queue=x"
        bench = make(FINETUNE_LEASE="1", FINETUNE_SINKS=sink)
        bench.job()
        bench.deliver()
        silent.accept()[0].close()
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert [line.failures for line in bench.lines.all()] == [1]


def test_a_broker_whose_queue_is_full_costs_one_connection_at_a_time(
    make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("finetune_worker.sinks.brokers.MOST_WAITING", 0)
    with ValkeyServer(tmp_path / "other") as server, connect(server.url) as client:
        bench = make(FINETUNE_SINKS=f"{server.url}?queue=x")
        [sink] = bench.container.sinks.own
        [(_, event, text)] = bench.outbox.subject(bench.job().id).wanted(sink)
        with bench.container.sinks.open() as sending:
            for _ in range(5):
                with pytest.raises(DeliveryError, match="nobody consumes"):
                    sending.send(sink, event, text)
            until(lambda: len(client.client_list()) == 1, seconds=30)  # this test's own


def test_the_failure_of_a_broker_that_went_silent_is_written_down_before_it_is_closed(
    make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close a connection that hangs takes as long again."""
    closed: list[object] = []

    class WentSilent:
        def __init__(self, *_: object) -> None:
            pass

        def send(self, *_: object) -> None:
            raise DeliveryError("no answer", unreachable=True)

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr("finetune_worker.sinks.senders.Broker", WentSilent)
    bench = make(FINETUNE_SINKS="redis://127.0.0.1:9/0?queue=x")
    [sink] = bench.container.sinks.own
    [(_, event, text)] = bench.outbox.subject(bench.job().id).wanted(sink)
    with bench.container.sinks.open() as sending:
        with pytest.raises(DeliveryError):
            sending.send(sink, event, text)
        assert closed == []
    assert len(closed) == 1


def test_a_broker_whose_answers_together_take_longer_than_a_line_is_held_gets_nothing_twice(
    make: MakeDeliveries, tmp_path: Path
) -> None:
    with (
        ValkeyServer(tmp_path / "other") as other,
        Switch(other.port, delay=0.15) as slow,
        connect(other.url) as watched,
    ):
        bench = make(FINETUNE_SINKS=f"redis://127.0.0.1:{slow.port}/0?queue=x&events=accepted", FINETUNE_LEASE="1.6")
        job = bench.job()
        bench.line_up()
        bench.deliver()
        [attempt] = bench.outbox.deliveries(job.id)
        assert (attempt.outcome, watched.llen("x")) == ("failed", 0)
        assert "answers took too long" in attempt.detail


def test_a_driver_that_is_not_installed_is_said(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_SINKS="mongodb://127.0.0.1:9/x?queue=q")
    bench.job()
    bench.deliver()
    [line] = bench.lines.all()
    assert line.reason == "mongodb://127.0.0.1:9/x?queue=q needs a driver that is not installed on this worker"


def test_a_full_queue_waits_for_its_consumer(make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_worker.sinks.brokers.MOST_WAITING", 1)
    bench = make(FINETUNE_SINKS="celery://shop/shop.done")
    job = bench.cancelled()
    bench.deliver()
    assert "nobody consumes" in bench.outbox.deliveries(job.id)[0].detail
    assert [attempt.outcome for attempt in bench.outbox.deliveries(job.id)] == ["failed", "delivered"]


def test_deliveries_by_many_threads_share_nothing_they_should_not(make: MakeDeliveries, rabbitmq: RabbitMQ) -> None:
    bench = make(FINETUNE_SINKS=f"{rabbitmq.url}?queue=many celery://many/m.any")
    jobs = [bench.cancelled() for _ in range(10)]
    bench.line_up()

    def all_done() -> bool:
        bench.notifier.step()
        return not bench.lines.all()

    until(all_done, seconds=20)
    events = [message.payload for message in taken(rabbitmq.url, "many", 30)]
    for job in jobs:
        assert kinds([event for event in events if event["subject"] == job.id]) == THREE

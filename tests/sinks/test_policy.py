"""Which sinks a request may reach: what the operator allows, public addresses only, and nothing is paid otherwise."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from finetune_queue.contract import JobState, parse_sink
from finetune_worker.sinks import DeliveryError
from finetune_worker.stages.runner import run_stage
from finetune_worker.tasks import STAGES
from support.sinks import SECRET, Deliveries, MakeDeliveries, Receiver
from support.web import Trap

PROVIDER = {"SEGMIND_BASE_URL": "https://api.segmind.com"}  # not on loopback: neither may sinks be


def refusal(bench: Deliveries, url: str) -> str | None:
    return bench.container.sinks.refusal(parse_sink(url))


def test_a_broker_is_reached_only_if_the_operator_named_it(make: MakeDeliveries) -> None:
    url = "amqp://rabbit.internal/?queue=q"
    assert "FINETUNE_REPLY_TO does not let" in (refusal(make(), url) or "")
    assert refusal(make(FINETUNE_REPLY_TO="amqp://rabbit.internal"), url) is None
    assert refusal(make(FINETUNE_SINKS=url), url) is None


@pytest.mark.parametrize(
    ("scheme", "port"),
    [("amqp", 5672), ("amqps", 5671), ("redis", 6379), ("rediss", 6379), ("http", 80), ("https", 443)],
)
def test_a_host_with_its_usual_port_written_out_is_the_same_host(make: MakeDeliveries, scheme: str, port: int) -> None:
    secret = f'{{"{scheme if scheme in {"http", "https"} else "http"}://10.0.0.1": "{SECRET}"}}'
    settings = {**PROVIDER, "FINETUNE_SIGNING_SECRET": secret}
    plain, written = f"{scheme}://10.0.0.1", f"{scheme}://10.0.0.1:{port}"
    for rule, origin in ((plain, written), (written, plain)):
        bench = make(**settings, FINETUNE_REPLY_TO=f"stream://a:b {rule}")
        assert refusal(bench, f"{origin}/x?queue=q") is None
        assert refusal(bench, f"{scheme}://10.0.0.1:1/x?queue=q") is not None
    assert refusal(make(**settings, FINETUNE_REPLY_TO=f"{scheme}://10.0.0.1:1"), f"{plain}/x?queue=q") is not None


def test_a_scheme_may_be_written_in_any_case(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_REPLY_TO="LIST:// Celery://orders HTTPS:// AMQP://rabbit.internal")
    for url in ("list://a", "celery://orders/a.b", "https://h.example/x", "amqp://rabbit.internal/?queue=q"):
        assert refusal(bench, url) is None, url
    assert refusal(bench, "celery://other/a.b") is not None


def test_a_web_sink_needs_a_secret(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_SIGNING_SECRET=f'{{"https://a.example": "{SECRET}"}}')
    assert refusal(bench, "https://a.example/x") is None
    assert "no FINETUNE_SIGNING_SECRET" in (refusal(bench, "https://b.example/x") or "")


def test_plain_http_is_for_this_machine_and_for_hosts_that_were_named(make: MakeDeliveries) -> None:
    assert refusal(make(), "http://127.0.0.1:1/x") is None
    assert refusal(make(), "http://h.example/x") is not None
    assert refusal(make(**PROVIDER), "http://127.0.0.1:1/x") is not None
    assert refusal(make(FINETUNE_REPLY_TO="http://h.example"), "http://h.example/x") is None


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "10.0.0.1.", "169.254.169.254", "127.1", "0x7f.1", "0177.0.0.1", "167772161", "[::1]", "[fd00::1]",
     "[::ffff:10.0.0.1]", "h.example:8443"],
)  # fmt: skip
def test_an_address_that_is_plainly_not_public_fails_before_anything_is_paid(make: MakeDeliveries, host: str) -> None:
    bench = make(**PROVIDER)
    job = bench.go(bench.job(reply_to=[f"https://{host}/x"]), JobState.UPLOADING)
    run_stage(bench.container, job.stage, STAGES[job.stage], job.id, "task-1")
    job = bench.container.jobs.get(job.id)
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "reply_to_refused")
    assert "only public addresses" in job.error.message
    assert refusal(make(**PROVIDER, FINETUNE_REPLY_TO=f"https://{host}"), f"https://{host}/x") is None
    assert refusal(make(**PROVIDER, FINETUNE_SINKS=f"https://{host}/x"), f"https://{host}/x") is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_private_address_is_not_knocked_at(make: MakeDeliveries, scheme: str) -> None:
    bench = make(**PROVIDER, FINETUNE_REPLY_TO=f"{scheme}://", FINETUNE_SINK_LIMIT="0.01")
    with Trap() as trap:
        job = bench.job(reply_to=[f"{scheme}://127.0.0.1:{trap.port}/hook"])
        bench.until_done()
        assert trap.knocks == 0
    assert "may be reached" in bench.outbox.deliveries(job.id)[0].detail


def test_a_private_address_that_the_operator_named_is_reached(make: MakeDeliveries) -> None:
    with Receiver() as receiver:
        bench = make(**PROVIDER, FINETUNE_REPLY_TO=f"http://127.0.0.1:{receiver.port}")
        bench.job(reply_to=[receiver.url("/hook")])
        bench.until_done()
    assert receiver.verified() == 1


def test_https_where_plain_http_is_served_is_not_blamed_on_a_certificate_alone(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_REPLY_TO="https://", FINETUNE_SINK_LIMIT="0.01")
    with Receiver() as receiver:
        job = bench.job(reply_to=[receiver.url("/hook").replace("http:", "https:")])
        bench.until_done()
    assert bench.outbox.deliveries(job.id)[0].detail.endswith("serves no https there, or has no valid certificate")


def test_what_is_not_allowed_fails_before_anything_is_paid(make: MakeDeliveries) -> None:
    bench = make(FINETUNE_REPLY_TO="list://")
    job = bench.go(bench.job(reply_to=["list://x", "stream://y"]), JobState.UPLOADING)
    run_stage(bench.container, job.stage, STAGES[job.stage], job.id, "task-1")
    job = bench.container.jobs.get(job.id)
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "reply_to_refused")
    assert "stream://y" in job.error.message
    bench.until_done()
    assert bench.container.jobs._redis.llen("x") == 3
    assert bench.container.jobs._redis.exists("y") == 0


def test_a_driver_s_own_kind_of_failure_is_a_failed_attempt(
    make: MakeDeliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    [event] = bench.container.jobs.events(bench.job().id)

    def broken(*_: Any) -> None:
        raise LookupError("hidden-detail")

    with bench.container.sinks.open() as sending:
        monkeypatch.setattr(sending, "_send", broken)
        with pytest.raises(DeliveryError, match="met an unexpected LookupError"), capture_logs() as logs:
            sending.send(parse_sink("list://x"), event, "")
    [crash] = logs
    assert (crash["event"], crash["job_id"], crash["event_id"]) == ("sender_crashed", event.subject, event.id)

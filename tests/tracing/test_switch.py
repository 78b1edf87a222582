"""What switches tracing on, what keeps it off, and that without it nothing is done."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from finetune_queue import tracing
from finetune_queue.contract import new_job_id
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import JobStore, keys
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import Rejected
from support.collector import Collector
from support.samples import sample, sample_request
from support.web import Answer, Web


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    tracing.stop()
    found.close()


@pytest.fixture
def start(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Starts tracing with the collector's variables and these."""

    def start(**more: str) -> None:
        for name, value in (collector.env | more).items():
            monkeypatch.setenv(name, value)
        tracing.start("tests")

    return start


def registered(client: redis.Redis) -> tuple[Any, str]:
    """A new job's hash in Redis and its event, while a span is open."""
    with tracing.span("outside"):
        job, _ = JobStore(client).register(new_job_id(), sample_request(), delay=60)
    event: Any = client.lindex(keys.job_events(job.id), 0)
    return client.hgetall(keys.job(job.id)), event


def test_off_nothing_is_kept_or_told(client: redis.Redis) -> None:
    tracing.start("tests")
    fields, event = registered(client)
    assert "traceparent" not in fields
    assert "traceparent" not in event
    assert tracing.trace_id() is None


def test_on_the_job_keeps_the_trace_that_it_was_made_in(
    start: Callable[..., None], client: redis.Redis, collector: Collector
) -> None:
    start(OTEL_SERVICE_NAME="orders")
    fields, event = registered(client)
    tracing.stop()
    [outside] = collector.spans
    assert (outside.service, outside.name) == ("orders", "outside")
    assert fields["traceparent"].split("-")[1:3] == [outside.trace_id, outside.span_id]
    assert f'"traceparent":"{fields["traceparent"]}"' in event


@pytest.mark.parametrize(
    "variables",
    [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}],
    ids=str,
)
def test_the_standard_variables_keep_it_off(
    start: Callable[..., None], client: redis.Redis, variables: dict[str, str]
) -> None:
    start(**variables)
    assert "traceparent" not in registered(client)[0]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console is not supported, only otlp or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the OTLP protocol grpc is not supported, only http/protobuf"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_said_and_stops_nothing(
    start: Callable[..., None], client: redis.Redis, variables: dict[str, str], reason: str
) -> None:
    with structlog.testing.capture_logs() as lines:
        start(**variables)
    assert [line["event"] for line in lines] == ["tracing_off"]
    assert lines[0]["reason"].startswith(reason)
    assert "traceparent" not in registered(client)[0]


def test_a_trace_that_is_not_sampled_stays_so(
    start: Callable[..., None], client: redis.Redis, collector: Collector
) -> None:
    start(OTEL_TRACES_SAMPLER="parentbased_always_off")
    fields, _ = registered(client)
    tracing.stop()
    start(OTEL_TRACES_SAMPLER="parentbased_always_on")
    with tracing.span("by another process", parent=fields["traceparent"]):
        assert (tracing.trace_id() or "none") in fields["traceparent"]
    tracing.stop()
    assert collector.bodies == []


def test_an_exception_marks_the_span_by_its_type_alone(start: Callable[..., None], collector: Collector) -> None:
    start()
    with pytest.raises(ValueError, match="secret"), tracing.span("breaks"):
        raise ValueError("a secret")
    tracing.stop()
    [span] = collector.spans
    assert (span.failed, span.attributes) == (True, {"error.type": "ValueError"})
    assert b"secret" not in b"".join(collector.bodies)


def test_nothing_is_added_to_a_call_and_its_failure_is_told_by_its_code(
    start: Callable[..., None], collector: Collector
) -> None:
    body = b'{"error": "what went wrong"}'
    path = "/v1/get-user-credits"
    start()
    with (
        Web({path: Answer(body, status=404)}) as api,
        SegmindClient(api.url(""), SecretStr("SG_0123456789abcdef")) as client,
        tracing.span("doing"),
    ):
        with pytest.raises(Rejected):
            client.credits()
        assert "traceparent" not in {name.lower() for name in api.headers[0]}
    tracing.stop()
    call, doing = collector.spans
    assert (call.name, call.parent_id, call.failed) == (f"GET {path}", doing.span_id, True)
    assert call.attributes["http.response.status_code"] == 404
    assert call.attributes["error.type"] == "wrong_address"
    assert b"what went wrong" not in b"".join(collector.bodies)


@pytest.mark.parametrize("incoming", [None, 17, "", "00-abc", f"00-{'0' * 32}-{'1' * 16}-01", "x" * 10_000], ids=str)
def test_what_is_no_traceparent_begins_no_trace(start: Callable[..., None], incoming: object) -> None:
    start()
    with tracing.continued(incoming):
        assert tracing.traceparent() is None


def test_the_sdk_joins_the_trace_of_the_program_that_uses_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # a process can set it only once
    tracer = trace.get_tracer("orders")
    with FineTuneQueue(Settings(finetune_redis_url=redis_url)) as queue, tracer.start_as_current_span("order") as order:
        job = queue.submit(sample(dataset="https://example.com/faces.zip"))
        current = tracing.trace_id()
    sent, _ = exporter.get_finished_spans()
    assert sent.name == "send finetune.run"
    assert sent.parent == order.get_span_context()
    assert sent.attributes is not None
    assert sent.attributes["finetune.job.id"] == job.id
    assert (job.record.traceparent or "").split("-")[1] == current


NOT_INSTALLED = """
import sys
sys.modules["opentelemetry"] = None
import finetune_worker.celery
import finetune_queue.cli.submit
from finetune_queue import tracing
from finetune_queue.sdk import FineTuneQueue
with tracing.running("tests"), tracing.span("outside"):
    job = FineTuneQueue.from_env().submit({request})
assert job.record.traceparent is None
"""


def test_without_the_extra_everything_works_and_says_what_is_missing(redis_url: str, tmp_path: Path) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "FINETUNE_REDIS_URL": redis_url}
    code = NOT_INSTALLED.replace("{request}", repr(sample(dataset="https://example.com/faces.zip")))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "tracing_off" in done.stderr
    assert "pip install 'finetune-queue[otel]'" in done.stderr

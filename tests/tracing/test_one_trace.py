"""A job's one trace, as a collector gets it from real processes."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_queue import tracing
from finetune_queue.contract import JobState
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import QUEUE, RUN, producer_app
from finetune_queue.sdk import FineTuneQueue
from segmind_sandbox.testing import SandboxControl
from support.collector import Collector, Seen
from support.images import make_dataset_folder
from support.samples import sample
from support.until import until

SECONDS = 30
SENT = "send finetune.run"
PRESIGN = "GET /finetune/request/upload/pre-signed-url"
STAGES = ("finetune.upload", "finetune.submit", "finetune.download", "finetune.publish")
PROMPT = "photo of 1MAN in a very secret place"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[LocalStack]:
    settings = {"FINETUNE_POLL_MIN_INTERVAL": "0.2", "FINETUNE_BACKOFF_BASE": "0.2", "FINETUNE_LOG_FORMAT": "json"}
    with LocalStack(
        tmp_path_factory.mktemp("stack"),
        gateway=True,
        rate_limit="50/1",
        sandbox={"SANDBOX_TRAINING_SECONDS": "0.3", "SANDBOX_WEIGHTS_BYTES": "262144"},
        settings=settings | collector.env | {"FASTAPI_OTEL_AUTO_CONFIGURE": "true"},  # which must change nothing
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def worker(stack: LocalStack) -> Child:
    """The only worker that runs, another one after a test that has killed it."""
    last = stack.workers[-1]
    return last if last.running else stack.start_worker(f"worker{len(stack.workers) + 1}")


@pytest.fixture
def queue(stack: LocalStack) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(stack.settings) as found:
        yield found


@pytest.fixture(scope="module")
def dataset(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset in the stack's staging store."""
    from finetune_queue.staging import stage

    return stage(str(make_dataset_folder(tmp_path_factory.mktemp("images"), count=6)), stack.settings)


def traceparent_of(trace_id: str) -> str:
    return f"00-{trace_id}-00f067aa0ba902b7-01"


def failures(collector: Collector) -> set[tuple[str, str]]:
    return {(span.name, span.attributes["error.type"]) for span in collector.spans if span.failed}


def one(spans: list[Seen], name: str) -> Seen:
    [found] = [span for span in spans if span.name == name]
    return found


def test_a_job_over_http_is_one_trace_with_all_that_was_done_for_it(
    stack: LocalStack, queue: FineTuneQueue, dataset: str, collector: Collector, control: SandboxControl
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = json.dumps(sample(dataset=dataset, instance_prompt=PROMPT, labels={"team": "a-label"})).encode()
    headers = {"Content-Type": "application/json", "traceparent": traceparent_of(trace_id)}
    for path in ("/", "/livez", "/openapi.json"):  # no part of anything
        urllib.request.urlopen(stack.gateway_url + path, timeout=SECONDS).close()
    request = urllib.request.Request(f"{stack.gateway_url}/v1/jobs", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as reply:
        job = queue.get(json.load(reply)["job_id"]).wait(SECONDS)
    assert job.state is JobState.SUCCEEDED, job.record.error
    spans = collector.wait_for(trace_id, *STAGES)

    server, sent = one(spans, "POST /v1/jobs"), one(spans, SENT)
    assert (server.service, server.parent_id) == ("finetune-gateway", "00f067aa0ba902b7")
    assert server.attributes["http.response.status_code"] == 202
    assert (sent.service, sent.parent_id) == ("finetune-gateway", server.span_id)
    for name in STAGES:
        stages = [span for span in spans if span.name == name]
        assert {span.parent_id for span in stages} == {sent.span_id}, name
        about = {"finetune.job.id": job.id, "finetune.account": "default", "finetune.attempt": 1}
        assert about.items() <= stages[0].attributes.items()
        assert stages[0].service == "finetune-worker"
    parents = {span.span_id: span.name for span in spans}
    inner = {span.name: parents[span.parent_id] for span in spans if span.name not in {*STAGES, SENT, server.name}}
    assert inner == {
        PRESIGN: "finetune.upload",
        "upload dataset": "finetune.upload",
        "POST /finetune/request/submit": "finetune.submit",
        "download weights": "finetune.download",
    }
    call = one(spans, "POST /finetune/request/submit")
    assert call.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "url.template": "/finetune/request/submit",
        "finetune.operation": "submit",
    }
    assert 0 < call.nanoseconds <= one(spans, "finetune.submit").nanoseconds
    assert not any(span.failed for span in spans)
    assert {span.name for span in collector.spans if span.service == "finetune-gateway"} == {server.name, SENT}

    # The same trace is on the job, its events and the lines of the log.
    assert job.as_dict()["traceparent"] == traceparent_of(trace_id).replace("00f067aa0ba902b7", sent.span_id)
    assert {event.traceparent for event in job.events()} == {job.record.traceparent}
    lines = [json.loads(line) for line in stack.workers[-1].lines() if line.startswith("{") and job.id in line]
    assert {line.get("trace_id") for line in lines if line["event"] == "stage_finished"} == {trace_id}

    # The sweep saw all trainings at once: a trace of its own, which names those of the jobs that it moved.
    until(lambda: any(trace_id in span.links for span in collector.spans), seconds=SECONDS)
    sweeps = [span for span in collector.spans if trace_id in span.links]
    assert {(sweep.name, sweep.parent_id) for sweep in sweeps} == {("finetune.sweep", "")}
    assert trace_id not in {sweep.trace_id for sweep in sweeps}

    everything = b"".join(collector.bodies)
    assert job.id.encode() in everything
    key = stack.worker_env["SEGMIND_API_KEY"]
    for secret in (key, "Signature", PROMPT, "1MAN", "a-label", dataset, "http://", "file://"):
        assert secret.encode() not in everything, secret


def test_a_trace_begins_at_the_worker_where_the_producer_has_none(
    queue: FineTuneQueue, dataset: str, collector: Collector, control: SandboxControl
) -> None:
    job = queue.submit(sample(dataset=dataset)).wait(SECONDS)
    assert job.state is JobState.SUCCEEDED
    _, trace_id, root_id, _ = (job.refresh().record.traceparent or "").split("-")
    spans = collector.wait_for(trace_id, *STAGES)
    root = one(spans, "finetune.upload")
    assert (root.span_id, root.parent_id) == (root_id, "")
    assert {span.parent_id for span in spans if span.name in STAGES[1:]} == {root_id}


def test_a_raw_celery_message_brings_its_trace(
    stack: LocalStack, queue: FineTuneQueue, dataset: str, collector: Collector, control: SandboxControl
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": traceparent_of(trace_id)}
    sent = producer_app(stack.settings).send_task(RUN, [sample(dataset=dataset)], queue=QUEUE, headers=headers)
    collector.wait_for(trace_id, *STAGES)
    assert queue.get(sent.id).record.traceparent == traceparent_of(trace_id)


def test_each_job_of_a_batch_is_a_trace_that_names_the_batch_s(
    queue: FineTuneQueue, dataset: str, collector: Collector, control: SandboxControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.env.items():
        monkeypatch.setenv(name, value)
    requests = [sample(name=f"batch-{number}", dataset=dataset) for number in range(2)]
    with tracing.running("orders"), tracing.span("all orders"):
        around = tracing.trace_id()
        jobs = [each.job for each in queue.submit_many(requests) if each.job is not None]
    assert [job.wait(SECONDS).state for job in jobs] == [JobState.SUCCEEDED] * 2
    traces = [(job.record.traceparent or "").split("-")[1] for job in jobs]
    assert len({around, *traces}) == 3
    for trace_id, job in zip(traces, jobs, strict=True):
        root = one(collector.wait_for(trace_id, SENT, *STAGES), SENT)
        assert (root.service, root.parent_id, root.links) == ("orders", "", (around,))
        assert root.attributes["finetune.job.id"] == job.id


def test_a_collector_that_is_away_hurts_no_job_and_is_told_of_once(
    worker: Child, queue: FineTuneQueue, dataset: str, collector: Collector, control: SandboxControl
) -> None:
    worker.new_lines()
    with collector.away():
        control.add_fault(op="presign", kind="http_error", status=422)
        assert queue.submit(sample(dataset=dataset)).wait(SECONDS).state is JobState.FAILED
        job = queue.submit(sample(dataset=dataset)).wait(SECONDS)
        assert job.state is JobState.SUCCEEDED
        worker.wait_for_line(lambda line: "retrying in" in line, timeout=SECONDS)
    worker.wait_for_line(lambda line: "spans_exported_again" in line, timeout=SECONDS)
    assert len([line for line in worker.new_lines() if "opentelemetry" in line]) == 1
    # What waited meanwhile came after all, failures by their code.
    failed = {(PRESIGN, "request_rejected"), ("finetune.upload", "request_rejected")}
    until(lambda: failures(collector) == failed, seconds=SECONDS)


@pytest.mark.usefixtures("control")
def test_processes_of_a_prefork_pool_and_the_command_line_send_their_spans(
    stack: LocalStack, worker: Child, dataset: str, collector: Collector, tmp_path: Path
) -> None:
    # "-P prefork" would be what the app is set to: threads.
    pool = ["celery", "--quiet", "-A", "finetune_worker", "worker", "-P", "processes", "-c", "1", "-n", "forks@%h"]
    at_the_end = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}  # they send what they have when they end, not before
    env = {"PATH": "", "PYTHONWARNINGS": "ignore:You're running the worker", **stack.worker_env, **at_the_end}
    worker.kill()  # it would take the job
    with Child("forks", [sys.executable, "-m", *pool], env=env, cwd=tmp_path, log=tmp_path / "log") as forks:
        forks.wait_for_line(lambda line: " ready." in line, timeout=60)
        command = [sys.executable, "-m", "finetune_queue.cli", "submit", "--json", "--wait", "-d", dataset]
        about = ["-n", "traced", "-p", "photo of 1MAN", "-t", "1MAN"]
        env = stack.settings_env | at_the_end
        done = subprocess.run([*command, *about], env=env, cwd=tmp_path, stdout=subprocess.PIPE, timeout=60, check=True)
        job = json.loads(done.stdout)
        forks.stop()
    trace_id = job["traceparent"].split("-")[1]
    spans = collector.wait_for(trace_id, SENT, *STAGES)
    assert (one(spans, SENT).service, one(spans, SENT).parent_id) == ("finetune-cli", "")

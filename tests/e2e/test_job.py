"""One job through real processes: from local images to verified weights and a result event."""

import hashlib
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from finetune_queue.contract import Access, Event, EventType, JobState, Stage, Visibility, WaitReason, new_job_id
from finetune_queue.errors import IdempotencyConflictError, InvalidRequestError
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import ACCESS, QUEUE, RUN, SWEEP, producer_app, stage_task
from finetune_queue.replaying import DeadLetterBox
from finetune_queue.sdk import FineTuneQueue, Job
from finetune_queue.staging import stage
from finetune_queue.store import DeadLetter, keys
from segmind_sandbox.testing import SandboxControl
from support.samples import sample
from support.until import until

SECONDS = 30


def path_of(url: str) -> Path:
    return Path(urlsplit(url).path)


def test_local_images_become_verified_weights(
    queue: FineTuneQueue, control: SandboxControl, images: Path, stack: LocalStack
) -> None:
    seen: list[Event] = []
    job = queue.submit(sample(dataset=str(images), labels={"team": "faces"})).wait(SECONDS, on_event=seen.append)

    assert job.state is JobState.SUCCEEDED, job.record.error
    weights = job.record.weights
    assert weights is not None
    body = path_of(weights.url).read_bytes()
    assert hashlib.sha256(body).hexdigest() == weights.sha256
    header = json.loads(body[8 : 8 + struct.unpack("<Q", body[:8])[0]])
    assert weights.tensors == len([name for name in header if name != "__metadata__"])
    manifest = json.loads(path_of(weights.manifest_url).read_text())
    assert manifest["weights"]["sha256"] == weights.sha256
    assert manifest["dataset"]["images"] == 6
    [slug] = [row["slug"] for row in control.trainings() if row["finetune_id"] == job.record.finetune_id]
    assert manifest["slug"] == job.record.slug == seen[-1].data["slug"] == slug
    kinds = [event.kind for event in seen if event.kind is not EventType.PROGRESS]
    assert kinds == [
        EventType.ACCEPTED,
        EventType.UPLOADING,
        EventType.SUBMITTING,
        EventType.TRAINING,
        EventType.DOWNLOADING,
        EventType.SUCCEEDED,
    ]
    assert [event.id for event in seen] == [f"{job.id}-{number + 1}" for number in range(len(seen))]
    report = control.report()
    assert sum(report["submits"]["by_name"].values()) == 1
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as client:
        stream: Any = client.xrange(keys.events())
    mine = [Event.model_validate_json(fields["event"]) for _, fields in stream]
    assert [event for event in mine if event.subject == job.id] == seen


PAGE_SAMPLE = {  # Fast Flux API, section 1
    "name": "fastfluxtest1",
    "instance_prompt": "1MAN, running in brown suit",
    "trigger_word": "1MAN",
    "base_model": "FAST_FLUX",
    "theme": "subject",
    "segmind_public": False,
    "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
}
NO_DEFAULTS = {
    "name": "Faces of May",
    "instance_prompt": "a Photo of ohwx Man",
    "trigger_word": "ohwx Man",
    "base_model": "FLUX_PRO",
    "theme": "Style",
    "segmind_public": True,
    "advance_parameters": {"steps": 700, "face_crop": True, "finetune_type": "FULL", "lora_rank": 16},
}


@pytest.mark.parametrize("asked", [PAGE_SAMPLE, NO_DEFAULTS], ids=["the page's sample", "no defaults"])
def test_what_is_paid_for_is_what_was_asked_for(
    queue: FineTuneQueue, images: Path, control: SandboxControl, asked: dict[str, Any]
) -> None:
    job = queue.submit({**asked, "dataset": str(images)}).wait(SECONDS)

    assert job.state is JobState.SUCCEEDED, job.record.error
    [sent] = [row["request"] for row in control.trainings() if row["finetune_id"] == job.record.finetune_id]
    assert sent == {**asked, "data_source_path": job.record.dataset_url}


def test_the_same_key_gives_the_same_job(queue: FineTuneQueue, images: Path, control: SandboxControl) -> None:
    request = sample(dataset=str(images))
    first = queue.submit(request, idempotency_key="order-1")
    second = queue.submit(request, idempotency_key="order-1")
    assert second.id == first.id
    with pytest.raises(IdempotencyConflictError):
        queue.submit(request | {"trigger_word": "2MAN"}, idempotency_key="order-1")
    first.wait(SECONDS)
    assert sum(control.report()["submits"]["by_name"].values()) == 1


def test_a_batch_s_messages_start_its_jobs(
    queue: FineTuneQueue, images: Path, control: SandboxControl, stack: LocalStack
) -> None:
    requests = [sample(name=f"batch-{number}", dataset=str(images)) for number in range(5)]
    jobs = [each.job for each in queue.submit_many(requests, batch="e2e") if each.job is not None]
    assert [job.wait(SECONDS).state for job in jobs] == [JobState.SUCCEEDED] * 5
    assert control.report()["submits"]["by_name"] == {f"batch-{number}": 1 for number in range(5)}
    lines = [line for log in stack.folder.glob("worker*.log") for line in log.read_text().splitlines()]
    started = "".join(line for line in lines if '"job_started"' in line)  # which a message does, and no deadline
    assert [job.id for job in jobs if job.id not in started] == []


@pytest.fixture
def staged(images: Path, stack: LocalStack) -> str:
    """The URL of a dataset that is staged, which a message from elsewhere may name."""
    return stage(str(images), stack.settings)


@pytest.fixture
def letters(stack: LocalStack) -> Iterator[DeadLetterBox]:
    with DeadLetterBox(stack.settings) as box:
        yield box


def kept(letters: DeadLetterBox, message_id: str) -> DeadLetter:
    """Wait until the message is set aside."""
    found: list[DeadLetter] = []

    def came() -> bool:
        found[:] = [letter for letter in letters.newest(5) if letter.message_id == message_id]
        return bool(found)

    until(came, seconds=SECONDS)
    [letter] = found
    return letter


def job_of(message_id: str, queue: FineTuneQueue) -> Job:
    """Wait until the message is a job, and until that has ended."""
    until(lambda: any(job.id == message_id for job in queue.list()), seconds=SECONDS)
    return queue.get(message_id).wait(SECONDS)


def test_a_raw_celery_client_may_send_the_request(queue: FineTuneQueue, staged: str, stack: LocalStack) -> None:
    app = producer_app(stack.settings)
    sent = app.send_task(RUN, [sample(dataset=staged)], queue=QUEUE)
    assert job_of(sent.id, queue).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ({"name": "x"}, "instance_prompt: is required"),
        (sample(datset="https://x/y.zip"), "datset: is not a field"),
        (sample(dataset="https://[faces]/y.zip"), "dataset: cannot be read as a URL"),
        ("no-such-job", "finetune.run takes a request, or the id of a registered job"),
        ("0197f0a2-7a3c-7c41-9d5e-3b7f6a1c2e90", "There is no job 0197f0a2-7a3c-7c41-9d5e-3b7f6a1c2e90"),
        (17, "expected a JSON object"),
    ],
)
def test_a_message_that_cannot_become_a_job_is_kept_and_told_of(
    stack: LocalStack, letters: DeadLetterBox, argument: Any, problem: str
) -> None:
    sent = producer_app(stack.settings).send_task(RUN, [argument], queue=QUEUE)
    letter = kept(letters, sent.id)
    assert problem in " ".join(letter.problems)
    assert json.loads(letter.body)[0] == [argument]


def test_a_request_that_expired_in_the_queue_is_kept_and_may_be_sent_again(
    queue: FineTuneQueue, stack: LocalStack, letters: DeadLetterBox, staged: str
) -> None:
    request, past = sample(dataset=staged), datetime.now(UTC) - timedelta(seconds=1)
    sent = producer_app(stack.settings).send_task(RUN, [request], queue=QUEUE, expires=past)
    letter = kept(letters, sent.id)
    assert "the message expired at 20" in letter.problems[0]
    letters.replay(letter.id)
    assert job_of(sent.id, queue).state is JobState.SUCCEEDED


def test_a_request_for_later_is_a_job_that_waits(queue: FineTuneQueue, stack: LocalStack, staged: str) -> None:
    app = producer_app(stack.settings)
    later = app.send_task(RUN, [sample(dataset=staged)], queue=QUEUE, countdown=3600)
    soon = app.send_task(RUN, [sample(dataset=staged)], queue=QUEUE, countdown=2)
    until(lambda: {later.id, soon.id} <= {job.id for job in queue.list()}, seconds=SECONDS)
    job = queue.get(soon.id).wait(SECONDS)
    assert job.state is JobState.SUCCEEDED
    assert job.record.created_ms + 1000 < job.events()[1].time.timestamp() * 1000  # when it started
    assert queue.get(later.id).record.waiting_for is WaitReason.START
    queue.cancel(later.id)


def test_a_request_that_was_revoked_is_kept_and_may_be_sent_again(
    queue: FineTuneQueue, stack: LocalStack, letters: DeadLetterBox, staged: str
) -> None:
    app, message_id = producer_app(stack.settings), new_job_id()
    told = app.control.revoke(message_id, reply=True, limit=len(stack.workers), timeout=SECONDS)
    assert len(told or ()) == len(stack.workers)
    app.send_task(RUN, [sample(dataset=staged)], queue=QUEUE, task_id=message_id)
    letter = kept(letters, message_id)
    assert letter.problems == ["the message was revoked before a worker took it"]
    letters.replay(letter.id)
    assert job_of(message_id, queue).state is JobState.SUCCEEDED


@pytest.mark.parametrize("task", [stage_task(Stage.SUBMIT), ACCESS, SWEEP])
def test_a_request_that_was_sent_to_another_task_is_kept_and_may_be_sent_again(
    queue: FineTuneQueue, stack: LocalStack, letters: DeadLetterBox, staged: str, task: str
) -> None:
    request = sample(dataset=staged, labels={"note": f"hidden-{task}"})
    sent = producer_app(stack.settings).send_task(task, [request], queue=QUEUE)
    letter = kept(letters, sent.id)
    assert letter.problems == [f"{task} is the workers' own: send requests to finetune.run"]
    letters.replay(letter.id)
    assert job_of(sent.id, queue).state is JobState.SUCCEEDED
    assert not [worker for worker in stack.workers if f"hidden-{task}" in worker.log.read_text()]


def test_a_message_of_10_mb_is_kept(
    queue: FineTuneQueue, stack: LocalStack, letters: DeadLetterBox, images: Path
) -> None:
    body = "x" * 10_000_000
    sent = producer_app(stack.settings).send_task(RUN, [sample(name=body)], queue=QUEUE)
    letter = kept(letters, sent.id)
    assert json.loads(letter.body)[0][0]["name"] == body
    assert len(str(letter.problems)) < 1000
    assert queue.submit(sample(dataset=str(images))).wait(SECONDS).state is JobState.SUCCEEDED


def test_a_message_that_is_no_json_is_kept(stack: LocalStack, letters: DeadLetterBox) -> None:
    app = producer_app(stack.settings)
    with app.connection_for_write() as connection:
        connection.Producer(serializer="json").publish(
            b"{ not json", content_type="application/json", content_encoding="utf-8", routing_key=QUEUE,
            exchange="", headers={"id": "broken-1", "task": RUN},
        )  # fmt: skip
    assert "{ not json" in kept(letters, "broken-1").body


def test_a_message_that_is_pickled_is_kept_and_told_what_is_read(stack: LocalStack, letters: DeadLetterBox) -> None:
    sent = producer_app(stack.settings).send_task(RUN, [sample()], queue=QUEUE, serializer="pickle")
    letter = kept(letters, sent.id)
    assert letter.problems == ["its content is application/x-python-serialize: only application/json is read"]


def test_an_unknown_task_is_kept(stack: LocalStack, letters: DeadLetterBox) -> None:
    sent = producer_app(stack.settings).send_task("finetune.nonsense", [1], queue=QUEUE)
    assert json.loads(kept(letters, sent.id).body)[0] == [1]


EMPTY_ZIP = b"PK\x05\x06" + bytes(18)


def test_a_bad_local_dataset_is_refused_at_once(queue: FineTuneQueue, tmp_path: Path) -> None:
    (tmp_path / "empty.zip").write_bytes(EMPTY_ZIP)
    before = len(list(queue.list()))
    with pytest.raises(InvalidRequestError, match="dataset: "):
        queue.submit(sample(dataset=str(tmp_path / "empty.zip")))
    assert len(list(queue.list())) == before


def test_a_bad_dataset_fails_before_anything_is_paid(
    queue: FineTuneQueue, control: SandboxControl, stack: LocalStack
) -> None:
    staged = stack.folder / "staging" / "empty.zip"
    staged.parent.mkdir(exist_ok=True)
    staged.write_bytes(EMPTY_ZIP)
    job = queue.submit(sample(dataset=f"file://{staged}")).wait(SECONDS)
    assert job.state is JobState.FAILED
    assert job.record.error is not None
    assert job.record.error.code == "dataset_rejected"
    assert job.record.dataset_report is not None
    assert control.report()["submits"]["by_name"] == {}


def test_a_wrong_api_key_is_said_on_the_job(
    queue: FineTuneQueue, control: SandboxControl, images: Path, stack: LocalStack
) -> None:
    control.add_fault(op="presign", kind="http_error", status=401)
    job = queue.submit(sample(dataset=str(images))).wait(SECONDS)
    assert job.state is JobState.FAILED
    assert job.record.error is not None
    assert job.record.error.code == "api_key_rejected"
    assert "SEGMIND_API_KEY" in job.record.error.message


def test_a_failed_job_resumes_at_the_stage_that_failed(
    queue: FineTuneQueue, control: SandboxControl, images: Path
) -> None:
    control.add_fault(op="download", kind="http_error", status=404, count=None)
    job = queue.submit(sample(dataset=str(images))).wait(SECONDS)
    assert job.state is JobState.FAILED, job.record
    control.reset("faults")

    assert job.retry().wait(SECONDS).state is JobState.SUCCEEDED
    assert sum(control.report()["submits"]["by_name"].values()) == 1


def test_a_job_that_waits_for_deployment_ends_when_it_is_available(queue: FineTuneQueue, images: Path) -> None:
    seen: list[Event] = []
    job = queue.submit(sample(dataset=str(images), wait_for="available")).wait(SECONDS, on_event=seen.append)
    assert job.state is JobState.SUCCEEDED
    assert job.record.provider_status == "AVAILABLE"
    assert EventType.DEPLOYING in [event.kind for event in seen]


def test_a_model_is_made_public_after_its_job(queue: FineTuneQueue, control: SandboxControl, images: Path) -> None:
    job = queue.submit(sample(dataset=str(images))).wait(SECONDS)
    job.set_public(True)
    until(lambda: job.refresh().record.access == Access(confirmed=Visibility.PUBLIC), seconds=SECONDS)
    [training] = [row for row in control.trainings() if row["finetune_id"] == job.record.finetune_id]
    assert training["public_model"] is True
    assert job.wait(SECONDS).events()[-1].kind is EventType.ACCESS


def test_private_weights_are_fetched_by_a_link(queue: FineTuneQueue, control: SandboxControl, images: Path) -> None:
    control.change_settings(private_weights=True)
    job = queue.submit(sample(dataset=str(images))).wait(SECONDS)
    control.change_settings(private_weights=False)
    assert job.state is JobState.SUCCEEDED, job.record.error
    weights_url = job.record.weights_url or ""
    assert "Signature" not in weights_url


def test_no_secret_is_in_the_logs_the_record_or_the_events(
    stack: LocalStack, queue: FineTuneQueue, images: Path
) -> None:
    job = queue.submit(sample(dataset=str(images))).wait(SECONDS)
    key = stack.worker_env["SEGMIND_API_KEY"]
    for worker in stack.workers:
        text = "\n".join(worker.lines())
        assert "stage_finished" in text
        assert key not in text
        assert "X-Amz-Signature=" not in text.replace("X-Amz-Signature=[redacted]", "")
    for told in (job.record, *job.events()):
        assert not any(secret in told.model_dump_json() for secret in (key, "X-Amz-Signature"))


def test_a_cancelled_job_stops(queue: FineTuneQueue, control: SandboxControl, images: Path) -> None:
    control.change_settings(training_seconds=600)
    job = queue.submit(sample(dataset=str(images)))
    until(lambda: job.refresh().state is JobState.TRAINING, seconds=SECONDS)
    job.cancel()
    assert job.wait(SECONDS).state is JobState.CANCELLED
    control.change_settings(training_seconds=0.5)

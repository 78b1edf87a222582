"""The upload stage: one URL for as long as it is good, then another; the report on the job; only what was checked."""

from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NoReturn

import pytest

from finetune_queue.contract import EventType, JobRecord, JobState, Stage, WaitReason
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.store import Change, Slot, keys
from finetune_worker.segmind.call import Call
from finetune_worker.segmind.errors import from_status
from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.stages import upload as module
from finetune_worker.stages.conclude import StageResult
from finetune_worker.stages.errors import from_dataset
from finetune_worker.stages.runner import run_stage
from finetune_worker.stages.upload import presign
from finetune_worker.transfer import put
from finetune_worker.transfer.errors import TryAgain
from finetune_worker.transfer.put import upload_presigned
from support.bench import Bench
from support.images import image_bytes, make_zip


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "d.zip", {"1.jpg": image_bytes(1, (600, 600)), "1.txt": b"photo of nobody"})


def uploading(bench: Bench, dataset: Path) -> JobRecord:
    jobs, job = bench.container.jobs, bench.job(dataset=f"file://{dataset}")
    return jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)


def calls(bench: Bench) -> tuple[int, int]:
    """How often a URL was asked for, and a PUT made."""
    report = bench.sandbox.control.report()["calls"]
    return sum(report["presign"].values()), sum(report["put"].values())


@pytest.mark.parametrize("fault", [{"kind": "slow_down"}, {"kind": "http_error", "status": 500}, {"kind": "reset"}])
def test_a_busy_storage_gets_the_same_url_again(bench: Bench, dataset: Path, fault: dict[str, Any]) -> None:
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", count=1, **fault)

    bench.run(job)
    waiting = bench.read(job)
    assert (waiting.state, waiting.attempts) == (JobState.UPLOADING, 1)
    bench.run(job)

    done = bench.read(job)
    assert (done.state, done.attempts) == (JobState.SUBMITTING, 0)
    assert calls(bench) == (1, 2)
    assert bench.container.jobs.upload_url(job.id) is None


@pytest.mark.parametrize(("asked", "waits"), [(100.0, (100.0, 125.0)), (1.0, (2.0, 4.0))], ids=["long", "short"])
def test_a_busy_storage_is_left_alone_for_as_long_as_it_asks_and_not_all_come_back_at_once(
    bench: Bench, dataset: Path, monkeypatch: pytest.MonkeyPatch, asked: float, waits: tuple[float, float]
) -> None:
    """Nor sooner than without a word of it: all tries would be used up in a few seconds."""
    bench.change_settings(finetune_backoff_base=4.0, finetune_backoff_max=300.0)

    def busy(*_: object, **__: object) -> NoReturn:
        raise TryAgain("storage_busy", "It cannot take the file now.", retry_after=asked)

    monkeypatch.setattr(module, "upload_presigned", busy)
    waited = set()
    for _ in range(5):
        job = uploading(bench, dataset)
        bench.run(job)
        waited.add((bench.due_ms(job) - bench.read(job).updated_ms) / 1000)

    assert waits[0] <= min(waited) < max(waited) <= waits[1]


def test_a_url_is_kept_until_shortly_before_its_end(bench: Bench, dataset: Path) -> None:
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="slow_down", count=1)
    bench.run(job)
    client = bench.container.jobs._redis
    assert client.ttl(keys.upload_url(job.id)) == pytest.approx(3600 - 60, abs=10)

    client.delete(keys.upload_url(job.id))  # as at that time

    bench.run(job)
    assert bench.read(job).state is JobState.SUBMITTING
    assert calls(bench) == (2, 2)


def ask_for_url(bench: Bench, job: JobRecord) -> StageResult:
    """Do what the message of its own does that a call slot for the URL is sent with."""
    return run_stage(bench.container, Stage.UPLOAD, presign, job.id, "task-1")


@pytest.mark.parametrize("way", ["in one go", "by a message of its own"])
@pytest.mark.parametrize("says", ["nothing", "that it ends soon"])
def test_a_url_is_asked_for_once_whatever_it_says_of_its_end(
    bench: Bench, dataset: Path, monkeypatch: pytest.MonkeyPatch, says: str, way: str
) -> None:
    job = uploading(bench, dataset)
    first = bench.container.budget.take("default", "0", 0.0)
    assert isinstance(first, Slot)
    for number in range(1, 50):
        bench.container.budget.take("default", str(number), 0.0)
    assert bench.run(job).sentence.startswith("parked: waiting for an API slot")
    if says == "nothing":
        monkeypatch.setattr(PresignedUpload, "expires_at", None)
    else:
        monkeypatch.setattr(module, "URL_MARGIN", timedelta(days=1))
    bench.container.jobs._redis.zrem(keys.slots("default"), first.token)

    if way == "by a message of its own":
        assert ask_for_url(bench, job).proceed
    result = bench.run(job)  # with one slot for one call

    assert result.sentence.startswith("uploaded 1 images")
    assert calls(bench) == (1, 1)


def test_a_url_that_the_storage_refuses_is_replaced_at_once(bench: Bench, dataset: Path) -> None:
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="http_error", status=403, count=1)
    bench.run(job)
    assert bench.container.jobs.upload_url(job.id) is None
    bench.run(job)
    assert bench.read(job).state is JobState.SUBMITTING
    assert calls(bench) == (2, 2)


def test_a_url_that_the_storage_goes_on_to_refuse_is_replaced_with_pauses(bench: Bench, dataset: Path) -> None:
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="http_error", status=403, count=3)
    assert bench.run(job).sentence.endswith("Retrying in 0 s")
    for _ in range(2):
        bench.run(job)
        assert bench.due_ms(job) - bench.read(job).updated_ms >= 50


def test_uploads_that_fail_between_calls_for_their_url_count_together(bench: Bench, dataset: Path) -> None:
    bench.change_settings(finetune_max_attempts=3)
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="http_error", status=403, count=3)
    bench.run(job)
    for attempts in (1, 2):
        before = bench.container.jobs.transition(bench.read(job), Change(delay=60), takeovers=1)
        ask_for_url(bench, job)
        then = bench.read(job)
        assert (then.state, then.attempts, then.takeovers) == (JobState.UPLOADING, attempts, 1)
        assert then.error == before.error
        bench.run(job)
    assert (bench.read(job).state, bench.error(job).code) == (JobState.FAILED, "upload_url_refused")
    assert calls(bench) == (3, 3)


@pytest.mark.parametrize(("status", "code"), [(404, "wrong_address"), (405, "wrong_address"), (301, "redirected")])
def test_a_wrong_address_of_the_api_fails_one_job_and_not_all(
    bench: Bench, dataset: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    def answer(self: Call, method: str, path: str, **_: object) -> NoReturn:
        raise from_status(status, {}, "", repeatable=True, nameless=self._nameless)

    monkeypatch.setattr(Call, "open", answer)
    first, second = uploading(bench, dataset), uploading(bench, dataset)
    for job in (first, second):
        bench.run(job)
    error = bench.error(first)
    assert (bench.read(first).state, error.code, error.upstream_status) == (JobState.FAILED, code, status)
    assert "SEGMIND_BASE_URL" in error.message
    assert bench.read(second).waiting_for is WaitReason.PAUSED
    assert bench.container.accounts.status("default").unwell == code


def test_a_url_without_a_slot_is_waited_for(bench: Bench, dataset: Path) -> None:
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="http_error", status=403, count=1)
    bench.run(job)
    for number in range(49):
        bench.container.budget.take("default", str(number), 0.0)

    result = ask_for_url(bench, job)

    assert not result.proceed
    assert result.sentence.startswith("parked: waiting for an API slot to ask for an upload URL")
    assert bench.container.accounts.place(bench.read(job)) == 0


class Ahead(datetime):
    """The clock of a machine that is five hours ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(hours=5)


def test_a_worker_whose_clock_is_hours_ahead_uploads(
    bench: Bench, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (module, put):
        monkeypatch.setattr(each, "datetime", Ahead, raising=False)
    job = uploading(bench, dataset)
    bench.sandbox.control.add_fault(op="put", kind="slow_down", count=1)
    bench.run(job)
    bench.run(job)
    assert bench.read(job).state is JobState.SUBMITTING
    assert calls(bench) == (1, 2)


def test_the_report_is_on_the_job_and_in_its_events(bench: Bench, dataset: Path) -> None:
    job = uploading(bench, dataset)
    bench.run(job)

    report: Any = bench.read(job).dataset_report
    assert (report["ok"], report["images"], report["captions"]) == (True, 1, 1)
    assert "caption_without_trigger" in {finding["code"] for finding in report["findings"]}
    (told,) = [each for each in bench.container.jobs.events(job.id) if each.kind is EventType.SUBMITTING]
    assert told.data["dataset_report"] == report


def test_a_dataset_that_is_exchanged_after_its_check_is_not_uploaded(
    bench: Bench, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = uploading(bench, dataset)

    def exchange(upload_to: Any, path: Path, **more: Any) -> Any:
        path.write_bytes(b"PK" + bytes(5000))
        return upload_presigned(upload_to, path, **more)

    monkeypatch.setattr(module, "upload_presigned", exchange)
    bench.run(job)

    failed = bench.read(job)
    assert (failed.state, bench.error(job).code) == (JobState.FAILED, "source_changed")
    assert "changed after it was checked" in bench.error(job).message
    assert bench.submits() == 0


def test_only_what_a_retry_can_mend_advises_one() -> None:
    gone = DatasetError("dataset_not_found", "It is not there.", "Put it there.")
    wrong = DatasetError("dataset_bad_address", "It is no address.", "Give a URL.")
    assert from_dataset(gone, Stage.UPLOAD).action == "Put it there. Then `finetune retry JOB`, or submit again."
    assert from_dataset(wrong, Stage.UPLOAD).action == "Give a URL. Then submit again."


@pytest.mark.parametrize(
    ("dataset", "leases"), [("https://example.com/faces.zip", 4), ("s3://bucket/faces.zip", 4), ("/srv/faces.zip", 1)]
)
def test_the_job_is_held_for_as_long_as_who_has_its_dataset_may_be_silent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, dataset: str, leases: int
) -> None:
    held: list[float] = []
    jobs, job = bench.container.jobs, bench.job(dataset=dataset)
    job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)

    def look(*_: object, **__: object) -> None:
        held.append((bench.due_ms(job) - bench.read(job).updated_ms) / 1000)
        raise DatasetError("dataset_unavailable", "It does not answer.", "", retryable=True)

    monkeypatch.setattr(module, "resolve_dataset", look)
    bench.run(job)

    [seconds] = held
    assert seconds // bench.container.settings.finetune_lease == leases

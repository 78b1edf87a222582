"""What becomes of a submitted job: its statuses over time, and the datasets that fail it."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox.calls import Api, put, submit_body, zip_bytes
from segmind_sandbox.faults import FailDeploy
from segmind_sandbox.models import Submit
from segmind_sandbox.testing import LiveSandbox
from segmind_sandbox.trainings import STATUSES, Training, TrainingBook
from support.until import until
from support.web import Answer, Web


def new_training(**fields: Any) -> Training:
    """A job made at second 100 that trains for 10 s and is deployed in 5 s."""
    defaults: dict[str, Any] = {
        "account": "account-1", "request": Submit.model_validate(submit_body()), "base_url": "http://sandbox",
        "created": 100.0, "training_seconds": 10.0, "deploy_seconds": 5.0, "weights_bytes": 4096, "list_url": False,
        "private_weights": False, "visible_at": 100.0,
    }  # fmt: skip
    return Training(**(defaults | fields))


def test_the_statuses_follow_the_clock() -> None:
    job = new_training()
    job.dataset_was_read(100.1)
    at = [(100, 0), (100.5, 1), (102, 2), (109.9, 2), (110, 3), (111, 4), (112.5, 5), (115, 6), (9999, 6)]
    assert [job.status(time) for time, _ in at] == [STATUSES[stage] for _, stage in at]
    assert [job.has_weights(time) for time, _ in at] == [stage >= 3 for _, stage in at]


def test_a_late_dataset_moves_all_that_follows() -> None:
    job = new_training()
    assert job.status(150) == "DATA_PROCESSING"
    job.dataset_was_read(150)
    assert job.status(150) == "TRAINING_INITIATED"
    assert job.status(157.9) == "TRAINING_INITIATED"
    assert job.status(158) == "TRAINING_COMPLETED"


def test_a_job_that_is_not_deployed_keeps_its_weights() -> None:
    job = new_training()
    job.apply(FailDeploy(op="training", kind="fail_deploy"))
    job.dataset_was_read(100)
    assert [job.status(at) for at in (109, 110, 111, 112.5, 9999)] == [*STATUSES[2:5], *["INFERENCE_FAILED"] * 2]
    assert [job.said(at) for at in (111, 112.5)] == [None, "no GPU is free"]
    assert job.details(9999)["cloud_storage_url"] == job.weights_url
    assert job.updated_at(9999) - job.created_at == timedelta(seconds=12.5)
    job.finish(9999)
    assert (job.status(9999), job.said(9999)) == ("AVAILABLE", None)


def test_a_job_in_the_list_gets_its_weights_also_when_its_status_says_so_before() -> None:
    job = new_training(list_url=True)
    job.word = "TRAINING_COMPLETED"
    job.dataset_was_read(100)
    shown = [json.loads(job.list_item(at)) for at in (109, 110)]
    assert [item["status"] for item in shown] == ["TRAINING_COMPLETED"] * 2
    assert [item["cloud_storage_url"] for item in shown] == [None, job.weights_url]


def test_a_held_job_goes_on_from_where_it_was() -> None:
    job = new_training()
    job.dataset_was_read(100)
    job.hold(105)
    assert job.status(1000) == "TRAINING_INITIATED"
    job.release(1000)
    assert job.status(1004.9) == "TRAINING_INITIATED"
    assert job.status(1005) == "TRAINING_COMPLETED"


def test_a_job_that_is_held_while_its_dataset_is_read_goes_on_from_there() -> None:
    job = new_training()
    job.hold(101)
    job.dataset_was_read(150)
    assert job.status(199) == "DATA_PROCESSING"
    job.release(200)
    assert job.status(200.9) == "DATA_PROCESSING"
    assert job.status(201) == "TRAINING_INITIATED"


def test_a_held_job_does_not_fail_before_it_goes_on() -> None:
    job = new_training(fails_with="no faces found")
    job.dataset_was_read(100)
    job.hold(105)
    assert job.status(1000) == "TRAINING_INITIATED"
    job.release(1000)
    assert job.status(1000.9) == "TRAINING_INITIATED"
    assert job.status(1001) == "FAILED"


def test_a_failed_job_is_updated_when_it_failed() -> None:
    job = new_training(fails_with="no faces found")
    job.dataset_was_read(100)
    failed = [job.details(at) for at in (106.5, 9999)]
    assert [each["status"] for each in failed] == ["FAILED"] * 2
    assert [job.updated_at(at) - job.created_at for at in (106.5, 9999)] == [timedelta(seconds=6)] * 2
    assert failed[0] == failed[1]


def test_a_finished_job_that_was_to_fail_does_not() -> None:
    job = new_training(fails_with="no faces found")
    job.finish(101)
    assert job.status(101) == "AVAILABLE"


def test_a_finished_job_stays_so_when_its_dataset_was_read_later() -> None:
    job = new_training()
    job.finish(100.1)
    job.dataset_was_read(100.2)
    assert job.status(100.2) == "AVAILABLE"


def test_no_time_at_all() -> None:
    job = new_training(training_seconds=0.0, deploy_seconds=0.0)
    job.dataset_was_read(100)
    assert job.status(100) == "AVAILABLE"


def test_a_change_while_the_dataset_is_read_does_not_stop_the_clockwork() -> None:
    now, asked = 150.0, 0  # the job would be trained by now, if its dataset had been read
    told: list[str] = []

    def clock() -> float:
        nonlocal asked
        asked += 1
        assert asked < 100, "the scheduler goes round and round, and lets nothing else run"
        return now

    async def scenario() -> None:
        nonlocal now
        job, done = new_training(), asyncio.Event()

        def on_status(_: Training, status: str) -> None:
            told.append(status)
            if status == "AVAILABLE":
                done.set()

        book = TrainingBook(clock, on_status)
        book.schedule(job)  # as a change from outside does
        scheduler = asyncio.create_task(book.run())
        await asyncio.sleep(0)
        job.dataset_was_read(now)
        book.schedule(job)
        now = 9999
        await asyncio.wait({scheduler, asyncio.create_task(done.wait())}, return_when="FIRST_COMPLETED", timeout=10)
        assert scheduler.cancel(), scheduler.exception()

    asyncio.run(scenario())
    assert told == ["TRAINING_COMPLETED", "INFERENCE_QUEUED", "AVAILABLE"]


def test_a_job_goes_through_the_statuses_in_order(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(training_seconds=0.5, deploy_seconds=0.5)
    finetune_id = api.submit()
    seen: list[str] = []

    def done() -> bool:
        status = str(api.details(finetune_id)["status"])
        if status not in seen:
            seen.append(status)
        return status == "AVAILABLE"

    until(done, seconds=30, pause=0.005)
    assert len(seen) > 3
    assert seen == [status for status in STATUSES if status in seen]


def test_updated_is_when_the_status_began_in_whole_seconds_as_on_the_page() -> None:
    job = new_training(created_at=datetime(2026, 1, 1, 0, 0, 0, 600_000, UTC))
    job.dataset_was_read(100)
    for now, updated in ((100, "00:00:00"), (110, "00:00:10"), (9999, "00:00:15")):
        shown = job.details(now)
        assert (shown["created_ts"], shown["updated_ts"]) == ("2026-01-01T00:00:00Z", f"2026-01-01T{updated}Z")


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def run_to_end(api: Api, **fields: Any) -> dict[str, Any]:
    return api.wait_for(api.submit(**fields), "AVAILABLE", "FAILED")


def test_a_public_zip_is_read_by_head_and_get(api: Api, web: Web) -> None:
    web.routes["/faces.zip"] = Answer(zip_bytes())
    assert run_to_end(api, data_source_path=web.url("/faces.zip"))["status"] == "AVAILABLE"
    assert web.seen == [("HEAD", "/faces.zip"), ("GET", "/faces.zip")]
    assert not {"x-api-key", "authorization"} & {name.lower() for headers in web.headers for name in headers}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=404), "HEAD answered 404"),
        (Answer(zip_bytes(), methods=("GET",)), "HEAD answered 405"),
        (Answer(zip_bytes(), methods=("HEAD",)), "GET answered 405"),
        (Answer(zip_bytes(), length=None), "HEAD sent no Content-Length"),
        (Answer(zip_bytes(), length=100_000_000), "under 100 MB"),
        (Answer(zip_bytes(), length=10_000), "unreachable"),
        (Answer(b"<html>not found</html>"), "not a ZIP"),
        (Answer(b"PK\x05\x06" + bytes(18)), "holds no files"),
    ],
)
def test_a_dataset_that_fails_the_job(api: Api, web: Web, answer: Answer, reason: str) -> None:
    web.routes["/faces.zip"] = answer
    job = run_to_end(api, data_source_path=web.url("/faces.zip"))
    assert job["status"] == "FAILED"
    assert reason in job["error_message"]
    assert job["cloud_storage_url"] is None
    item = api.list()[0]
    assert (item["status"], item["error_message"]) == ("FAILED", job["error_message"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/faces.zip", "http://xn--/faces.zip"])
def test_a_dataset_on_a_host_that_is_not_there(api: Api, url: str) -> None:
    assert "unreachable" in run_to_end(api, data_source_path=url)["error_message"]


def test_redirects_are_followed_to_a_point(api: Api, web: Web) -> None:
    web.routes["/moved"] = Answer(status=302, headers={"Location": "/faces.zip"})
    web.routes["/faces.zip"] = Answer(zip_bytes())
    web.routes["/round"] = Answer(status=302, headers={"Location": "/round"})
    web.routes["/away"] = Answer(status=302, headers={"Location": "http://127.0.0.1:99999/"})
    assert run_to_end(api, data_source_path=web.url("/moved"))["status"] == "AVAILABLE"
    assert "TooManyRedirects" in run_to_end(api, data_source_path=web.url("/round"))["error_message"]
    assert "unreachable" in run_to_end(api, data_source_path=web.url("/away"))["error_message"]


def test_a_dataset_that_was_never_uploaded(api: Api) -> None:
    assert "404" in run_to_end(api, data_source_path=api.presign()["s3_url"])["error_message"]


def test_an_upload_that_is_not_public_or_not_a_zip(api: Api) -> None:
    assert "not public" in run_to_end(api, data_source_path=api.upload(public=False))["error_message"]
    assert "not a ZIP" in run_to_end(api, data_source_path=api.upload(b"text"))["error_message"]


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff"), ("é".encode(), b"\xc3x")],
    ids=["a version to come", "a name that is no UTF-8"],
)
def test_an_upload_whose_list_of_files_cannot_be_read(api: Api, old: bytes, new: bytes) -> None:
    files, mark, entries = zip_bytes("photo-é.jpg").partition(b"PK\x01\x02")
    broken = files + (mark + entries).replace(old, new)
    assert "not a ZIP" in run_to_end(api, data_source_path=api.upload(broken))["error_message"]


def test_an_upload_of_100_mb(api: Api, tmp_path: Path) -> None:
    large = tmp_path / "large.zip"
    with large.open("wb") as file:
        file.truncate(100_000_000)
    links = api.presign()
    with large.open("rb") as file:
        assert put(links["presigned_url"], file).status_code == 200
    assert "under 100 MB" in run_to_end(api, data_source_path=links["s3_url"])["error_message"]


def test_the_presigned_link_is_no_dataset(api: Api) -> None:
    """A client that submits presigned_url instead of s3_url: the signature is for a PUT."""
    links = api.presign()
    assert "HEAD answered 403" in run_to_end(api, data_source_path=links["presigned_url"])["error_message"]


def test_list_lag(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(list_lag_seconds=1)
    finetune_id = api.submit()
    assert api.list() == []
    assert api.details(finetune_id)["finetune_id"] == finetune_id
    until(lambda: [item["finetune_id"] for item in api.list()] == [finetune_id], seconds=30)


def test_jobs_changed_from_outside(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(training_seconds=60)
    dataset = api.upload()
    held, failed, hidden = (api.submit(name=name, data_source_path=dataset) for name in ("held", "failed", "hidden"))
    assert sandbox.control.change_training(held, hold=True)["held"] is True
    sandbox.control.change_training(failed, fail="no faces found")
    sandbox.control.change_training(hidden, hidden=True, finish=True)

    assert api.details(hidden)["status"] == "AVAILABLE"
    assert api.details(failed)["error_message"] == "no faces found"
    assert {item["name"] for item in api.list()} == {"held", "failed"}
    assert {job["name"] for job in sandbox.control.trainings()} == {"held", "failed", "hidden"}

    assert sandbox.control.change_training(held, hold=False)["held"] is False


def test_the_list_tells_the_newest_error(api: Api, sandbox: LiveSandbox) -> None:
    finetune_id = api.submit()
    for message in ("no faces found", "out of memory"):
        sandbox.control.change_training(finetune_id, fail=message)
        assert [item["error_message"] for item in api.list()] == [message]
        assert api.details(finetune_id)["error_message"] == message


def test_a_job_by_the_name_of_another(api: Api) -> None:
    """The API takes the same name and dataset twice: two paid jobs."""
    dataset = api.upload()
    first, second = api.submit(data_source_path=dataset), api.submit(data_source_path=dataset)
    assert first != second
    assert api.sandbox.control.report()["submits"] == {
        "total": 2,
        "by_name": {"fastfluxtest1": 2},
        "by_data_source_path": {dataset: 2},
    }

"""The client and the transfers against the sandbox, which was written from the specification and not from them."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import (
    MalformedReply,
    OutcomeUnknown,
    RateLimited,
    Rejected,
    SegmindError,
    Unavailable,
)
from finetune_worker.segmind.models import FinetuneDetails, SubmitRequest
from finetune_worker.transfer.download import download
from finetune_worker.transfer.errors import NeedNewUrl, StartOver, TransferError, TryAgain
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.put import upload_presigned
from finetune_worker.transfer.safetensors import verify_safetensors
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from support.until import until

WEIGHTS = 1_000_000
QUICK = TransferLimits(connect_timeout=2, stall_timeout=5, total_timeout=20)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveSandbox]:
    settings = SandboxSettings(
        training_seconds=0.2,
        deploy_seconds=0.1,
        weights_bytes=WEIGHTS,
        rate_limit="100000/60",
        api_keys={"key-1": None},
    )
    with run_sandbox(settings) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(live: LiveSandbox) -> LiveSandbox:
    live.control.reset()
    return live


@pytest.fixture
def client(sandbox: LiveSandbox) -> Iterator[SegmindClient]:
    with SegmindClient(sandbox.base_url, SecretStr(sandbox.api_key), read_timeout=5, call_timeout=10) as client:
        yield client


def zip_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.jpg", os.urandom(300_000))
    return path


def submitted(client: SegmindClient, tmp_path: Path, name: str = "job-1") -> str:
    upload = client.presign_upload(name)
    upload_presigned(upload, zip_file(tmp_path), allow_loopback=True, limits=QUICK)
    return client.submit(request(upload.s3_url, name)).finetune_id


def request(url: str, name: str = "job-1") -> SubmitRequest:
    parameters = {"steps": 2000, "face_crop": False, "finetune_type": "LORA"}
    return SubmitRequest(
        name=name,
        data_source_path=url,
        instance_prompt="1MAN, in a suit",
        trigger_word="1MAN",
        advance_parameters=parameters,
    )


def finished(client: SegmindClient, finetune_id: str) -> FinetuneDetails:
    seen = [client.details(finetune_id)]

    def ended() -> bool:
        seen.append(client.details(finetune_id))
        return seen[-1].available or seen[-1].failed

    until(ended, seconds=20)
    assert seen[-1].available, seen[-1].error_message
    return seen[-1]


# --- The way through ---


def test_from_a_dataset_to_verified_weights(client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path) -> None:
    source = zip_file(tmp_path)
    upload = client.presign_upload("job-1")
    assert upload.expires_at is not None
    assert upload_presigned(upload, source, allow_loopback=True, limits=QUICK) == source.stat().st_size
    finetune_id = client.submit(request(upload.s3_url)).finetune_id

    details = finished(client, finetune_id)
    assert details.data_source_path == upload.s3_url
    assert details.cloud_storage_url is not None
    assert details.created_ts is not None
    with client.list_finetunes() as listing:
        (item,) = listing
    assert (item.finetune_id, item.data_source_path, item.status) == (finetune_id, upload.s3_url, "AVAILABLE")
    assert listing.complete

    part = tmp_path / "w.part"
    done = download(details.cloud_storage_url, part, allow_loopback=True, limits=QUICK)
    assert (done.size, done.checked) == (WEIGHTS, "crc32c")
    assert done.sha256 == hashlib.sha256(part.read_bytes()).hexdigest()
    assert verify_safetensors(part) > 0
    assert part.stat().st_size == WEIGHTS
    report = sandbox.control.report()
    assert report["submits"]["by_name"] == {"job-1": 1}
    assert report["key_leaks"] == 0


def test_access_link_and_credits(client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path) -> None:
    finetune_id = submitted(client, tmp_path)
    url = finished(client, finetune_id).cloud_storage_url
    assert url is not None
    for public in (True, False):
        client.set_access(finetune_id, public=public)
        [training] = sandbox.control.trainings()
        assert training["public_model"] is public
    link = client.private_link(url)
    assert download(link, tmp_path / "w.part", allow_loopback=True, limits=QUICK).size == WEIGHTS
    assert client.credits().total > 0


def test_private_weights_need_the_link(client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path) -> None:
    sandbox.control.change_settings(private_weights=True)
    url = finished(client, submitted(client, tmp_path)).cloud_storage_url
    assert url is not None
    part = tmp_path / "w.part"
    with pytest.raises(NeedNewUrl):
        download(url, part, allow_loopback=True, limits=QUICK)
    assert download(client.private_link(url), part, allow_loopback=True, limits=QUICK).size == WEIGHTS


# --- Refusals ---


def test_a_wrong_key(sandbox: LiveSandbox) -> None:
    with SegmindClient(sandbox.base_url, SecretStr("wrong-key")) as client, pytest.raises(Rejected) as caught:
        client.credits()
    assert caught.value.code == "api_key_rejected"
    assert "wrong-key" not in str(caught.value)


def test_an_unknown_finetune(client: SegmindClient) -> None:
    with pytest.raises(Rejected) as caught:
        client.details("00000000-0000-4000-8000-000000000000")
    assert caught.value.code == "not_found"


def test_a_request_that_the_api_does_not_take(client: SegmindClient) -> None:
    with pytest.raises(Rejected) as caught:
        client.submit(request("not a URL"))
    assert caught.value.code == "request_rejected"


def test_the_rate_limit(client: SegmindClient, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(rate_limit="2/60")
    client.credits()
    client.credits()
    with pytest.raises(RateLimited) as caught:
        client.submit(request("https://storage.example/x.zip"))
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 61


# --- Faults ---

LOST: list[tuple[dict[str, object], type[SegmindError], int]] = [
    ({"kind": "reply_lost"}, OutcomeUnknown, 1),
    ({"kind": "reset"}, OutcomeUnknown, 0),
    ({"kind": "malformed_json"}, OutcomeUnknown, 1),
    ({"kind": "html_200", "processed": True}, OutcomeUnknown, 1),
    ({"kind": "html_200"}, OutcomeUnknown, 0),
    ({"kind": "http_error", "status": 500}, OutcomeUnknown, 0),
    ({"kind": "http_error", "status": 502, "body": "html", "processed": True}, OutcomeUnknown, 1),
    ({"kind": "http_error", "status": 409, "processed": True}, OutcomeUnknown, 1),
    ({"kind": "http_error", "status": 402}, Rejected, 0),
    ({"kind": "rate_limited", "retry_after": 3}, RateLimited, 0),
    ({"kind": "slow", "seconds": 3, "processed": True}, OutcomeUnknown, 1),
]


@pytest.mark.parametrize(("fault", "kind", "accepted"), LOST, ids=[str(fault) for fault, _, _ in LOST])
def test_a_submit_is_never_taken_for_safe_to_repeat_when_it_was_accepted(
    sandbox: LiveSandbox, fault: dict[str, object], kind: type[SegmindError], accepted: int
) -> None:
    sandbox.control.add_fault(op="submit", **fault)
    with (
        SegmindClient(sandbox.base_url, SecretStr(sandbox.api_key), read_timeout=0.5) as client,
        pytest.raises(SegmindError) as caught,
    ):
        client.submit(request("https://storage.example/x.zip"))
    assert type(caught.value) is kind
    until(lambda: len(sandbox.control.trainings()) >= accepted, seconds=30)
    assert len(sandbox.control.trainings()) == accepted


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "reply_lost"}, Unavailable),
        ({"kind": "reset"}, Unavailable),
        ({"kind": "malformed_json"}, MalformedReply),
        ({"kind": "html_200"}, MalformedReply),
        ({"kind": "http_error", "status": 503, "body": "empty"}, Unavailable),
    ],
    ids=str,
)
def test_faults_of_the_list(
    client: SegmindClient, sandbox: LiveSandbox, fault: dict[str, object], kind: type[SegmindError]
) -> None:
    client.submit(request("https://storage.example/x.zip"))
    sandbox.control.add_fault(op="list", **fault)

    def read() -> int:
        with client.list_finetunes() as listing:
            return len(list(listing))

    with pytest.raises(kind):
        read()
    assert read() == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "slow_down"}, "storage_busy"),
        ({"kind": "reset"}, "connection_lost"),
        ({"kind": "reply_lost"}, "connection_lost"),
        ({"kind": "http_error", "status": 500}, "storage_busy"),
    ],
    ids=str,
)
def test_an_upload_that_fails_is_repeated_with_the_same_url(
    client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path, fault: dict[str, object], code: str
) -> None:
    upload, source = client.presign_upload("job-1"), zip_file(tmp_path)
    sandbox.control.add_fault(op="put", **fault)
    with pytest.raises(TryAgain) as caught:
        upload_presigned(upload, source, allow_loopback=True, limits=QUICK)
    assert caught.value.code == code
    assert upload_presigned(upload, source, allow_loopback=True, limits=QUICK) > 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "truncated", "after_bytes": 1}, TryAgain),
        ({"kind": "truncated", "after_bytes": 700_001}, TryAgain),
        ({"kind": "corrupted"}, StartOver),
        ({"kind": "corrupted", "at_byte": 999_999}, StartOver),
        ({"kind": "stall", "seconds": 2, "after_bytes": 5000}, TryAgain),
        ({"kind": "slow_down"}, TryAgain),
        ({"kind": "reset"}, TryAgain),
        ({"kind": "http_error", "status": 403}, NeedNewUrl),
    ],
    ids=str,
)
def test_a_download_that_fails_ends_in_the_right_bytes(
    client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path, fault: dict[str, object], kind: type[TransferError]
) -> None:
    url = finished(client, submitted(client, tmp_path)).cloud_storage_url
    assert url is not None
    part = tmp_path / "w.part"
    sandbox.control.add_fault(op="download", **fault)
    limits = TransferLimits(stall_timeout=0.5) if fault["kind"] == "stall" else TransferLimits()
    with pytest.raises(kind):
        download(url, part, allow_loopback=True, limits=limits)
    sandbox.control.add_fault(op="download", kind="ignore_range")
    assert download(url, part, allow_loopback=True).checked == "crc32c"
    assert verify_safetensors(part) > 0
    assert part.stat().st_size == WEIGHTS


def test_weights_that_are_replaced_between_two_tries(
    client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path
) -> None:
    finetune_id = submitted(client, tmp_path)
    url = finished(client, finetune_id).cloud_storage_url
    assert url is not None
    part = tmp_path / "w.part"
    sandbox.control.add_fault(op="download", kind="truncated", after_bytes=600_000)
    with pytest.raises(TryAgain):
        download(url, part, allow_loopback=True, limits=QUICK)
    sandbox.control.change_training(finetune_id, replace_weights=True)
    done = download(url, part, allow_loopback=True, limits=QUICK)
    assert done.checked == "crc32c"
    assert done.sha256 == hashlib.sha256(part.read_bytes()).hexdigest()
    assert verify_safetensors(part) > 0
    assert part.stat().st_size == WEIGHTS


def test_a_training_that_fails_and_one_with_a_new_word(
    client: SegmindClient, sandbox: LiveSandbox, tmp_path: Path
) -> None:
    sandbox.control.add_fault(op="training", kind="fail_training", message="no faces", match="bad")
    bad = submitted(client, tmp_path, "bad")
    until(lambda: client.details(bad).failed, seconds=20)
    failed = client.details(bad)
    assert failed.error_message == "no faces"
    assert not failed.trained
    sandbox.control.add_fault(op="training", kind="unknown_status", word="WARMING_UP", match="odd")
    sandbox.control.add_fault(op="training", kind="hold", match="odd")  # until it was seen
    odd = submitted(client, tmp_path, "odd")
    until(lambda: client.details(odd).status == "WARMING_UP", seconds=20)
    sandbox.control.change_training(odd, hold=False)
    assert finished(client, odd).available


def test_threads_share_one_client(sandbox: LiveSandbox) -> None:
    with SegmindClient(sandbox.base_url, SecretStr(sandbox.api_key)) as client:
        sandbox.control.change_settings(rate_limit="1000/60")
        ids = [
            client.submit(request("https://storage.example/x.zip", f"job-{number}")).finetune_id for number in range(16)
        ]

        def ask(finetune_id: str) -> list[str]:
            return [client.details(finetune_id).finetune_id for _ in range(5)]

        with ThreadPoolExecutor(16) as threads:  # more than connections are kept
            assert list(threads.map(ask, ids)) == [[finetune_id] * 5 for finetune_id in ids]

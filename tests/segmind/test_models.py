"""Statuses and presigned URLs."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from finetune_worker.segmind.models import Credits, FinetuneDetails, FinetuneItem, PresignedUpload


def item(status: str, error_message: object = None) -> FinetuneItem:
    return FinetuneItem.model_validate({"finetune_id": "a", "status": status, "error_message": error_message})


@pytest.mark.parametrize(
    ("status", "error", "known", "trained", "failed"),
    [
        ("REQUESTED", None, True, False, False),
        ("DATA_PROCESSING", "", True, False, False),
        ("TRAINING_INITIATED", None, True, False, False),
        ("TRAINING_COMPLETED", None, True, True, False),
        ("INFERENCE_QUEUED", None, True, True, False),
        ("DEPLOYING", None, True, True, False),
        ("AVAILABLE", None, True, True, False),
        ("available ", None, True, True, False),
        ("REQUESTED", "the ZIP is empty", True, False, True),
        ("FAILED", None, False, False, True),
        ("TRAINING_FAILED", None, False, False, True),
        ("error", None, False, False, True),
        ("CANCELLED", None, False, False, True),
        ("AVAILABLE", "a warning", True, True, False),
        ("QUANTUM_TUNING", None, False, False, False),
        ("", None, False, False, False),
    ],
)
def test_what_a_status_says(status: str, error: str | None, known: bool, trained: bool, failed: bool) -> None:  # noqa: FBT001
    found = item(status, error)
    assert (found.known, found.trained, found.failed) == (known, trained, failed)
    assert found.status == status


@pytest.mark.parametrize("nothing", [None, "", " ", "null", "None", " NONE ", {}, [], False, 0], ids=repr)
def test_an_error_message_that_says_nothing_fails_no_training(nothing: object) -> None:
    found = item("TRAINING_INITIATED", nothing)
    assert (found.error_message, found.failed) == (None, False)


@pytest.mark.parametrize(
    ("said", "text"), [("None of the images shows a face", None), (["no face"], '["no face"]'), (True, "true")]
)
def test_an_error_message_of_any_type_that_says_something_fails_it(said: object, text: str | None) -> None:
    found = item("TRAINING_INITIATED", said)
    assert (found.error_message, found.failed) == (text or said, True)


def test_an_error_message_is_kept_without_signatures_and_in_a_size_to_show() -> None:
    signed = "https://b.example/d.zip?X-Amz-Signature=a1b2c3d4"
    said = item("FAILED", f"cannot read {signed} \x1b[2J\r\n" + "x" * 5_000_000).error_message
    assert said is not None
    assert said.startswith("cannot read https://b.example/d.zip?... [2J xxx")
    assert len(said) <= 1_000
    assert item("TRAINING_INITIATED", "\x00\x1b").error_message is None


def test_texts_with_half_of_a_character_can_be_stored() -> None:
    body = {"finetune_id": "a", "status": "NEW \ud83d", "name": "me \ud83d", "error_message": "no \ud83d"}
    found = FinetuneDetails.model_validate(body)
    assert (found.status, found.name, found.error_message) == ("NEW \\ud83d", "me \\ud83d", "no \\ud83d")
    found.model_dump_json()


def test_what_is_kept_of_an_endless_reply_has_an_end() -> None:
    endless = "x" * 3_000_000
    found = FinetuneDetails.model_validate(
        {"finetune_id": "a", "status": endless, "slug": endless, "cloud_storage_url": endless, "name": [endless]}
    )
    assert len(found.status) <= 200
    assert max(map(len, (found.slug or "", found.cloud_storage_url or "", found.name or ""))) <= 8_192
    for urls in ((endless, "https://b.example/x"), ("https://b.example/x", endless)):
        with pytest.raises(ValidationError, match="at most 8192"):
            PresignedUpload.model_validate(dict(zip(("presigned_url", "s3_url"), urls, strict=True)))


def test_a_name_like_a_word_for_null_is_a_name() -> None:
    assert FinetuneItem.model_validate({"finetune_id": "a", "name": "none"}).name == "none"


def test_details_without_their_wrapper_are_read_too() -> None:
    assert FinetuneDetails.model_validate({"finetune_id": "a"}).finetune_id == "a"


def test_a_time_without_a_zone_is_utc() -> None:
    found = FinetuneDetails.model_validate({"finetune_id": "a", "created_ts": "2025-01-01T00:00:00"})
    assert found.created_ts == datetime(2025, 1, 1, tzinfo=UTC)


def test_credits_are_what_says_so() -> None:
    found = [Credits.model_validate(body).total for body in ({"credits": 1.5}, {"free-credits": 2}, {"credits": 0})]
    assert found == [1.5, 2.0, 0.0]


@pytest.mark.parametrize("body", [{"error": "down"}, {}, {"free_credits": 1}])
def test_an_object_without_credits_is_no_empty_account(body: object) -> None:
    with pytest.raises(ValidationError, match="has no credits"):
        Credits.model_validate(body)


@pytest.mark.parametrize(
    ("query", "expires"),
    [
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=60", datetime(2026, 1, 1, 0, 1, tzinfo=UTC)),
        ("x-amz-date=20260101T000000Z&x-amz-expires=60", datetime(2026, 1, 1, 0, 1, tzinfo=UTC)),
        ("AWSAccessKeyId=a&Signature=b&Expires=1767225600", datetime(2026, 1, 1, tzinfo=UTC)),
        ("X-Amz-Date=20260101T000000Z", None),
        ("X-Amz-Date=today&X-Amz-Expires=60", None),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=9999999999999", None),
        ("Expires=99999999999999999", None),
        ("", None),
    ],
)
def test_when_a_presigned_url_ends(query: str, expires: datetime | None) -> None:
    upload = PresignedUpload.model_validate(
        {"presigned_url": f"https://b.example/x?{query}", "s3_url": "https://b.example/x"}
    )
    assert upload.expires_at == expires


def test_the_signed_headers() -> None:
    url = "https://b.example/x?X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl"
    upload = PresignedUpload.model_validate({"presigned_url": url, "s3_url": "https://b.example/x"})
    assert upload.signed_headers == {"content-type", "host", "x-amz-acl"}

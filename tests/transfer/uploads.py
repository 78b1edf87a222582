"""A storage that takes a presigned PUT, and the upload to it."""

import hashlib
import os
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.transfer.errors import TransferError
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.put import upload_presigned
from wire.rawserver import Heard, RawServer, Wire

CONTENT = os.urandom(700_001)
MD5 = hashlib.md5(CONTENT).hexdigest()
SIGNED = "X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl&X-Amz-Signature=feedface"
QUICK = TransferLimits(connect_timeout=2, stall_timeout=5, total_timeout=20)


def presigned(server: RawServer, *, ends: timedelta = timedelta(minutes=5), signed: str = SIGNED) -> PresignedUpload:
    begin = datetime.now(UTC) - timedelta(hours=1)
    lasts = int((timedelta(hours=1) + ends).total_seconds())
    place = f"{server.url}/uploads/u/f-x.zip"
    query = f"X-Amz-Date={begin:%Y%m%dT%H%M%SZ}&X-Amz-Expires={lasts}&{signed}"
    return PresignedUpload.model_validate({"presigned_url": f"{place}?{query}", "s3_url": place})


def put(server: RawServer, path: Path, **more: object) -> int:
    options: dict[str, object] = {"allow_loopback": True, "limits": QUICK} | more
    return upload_presigned(presigned(server), path, **options)  # type: ignore[arg-type]


def failure(server: RawServer, path: Path, **more: object) -> TransferError:
    with pytest.raises(TransferError) as caught:
        put(server, path, **more)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert "feedface" not in shown
    assert caught.value.__cause__ is None
    return caught.value


class Storage:
    """Takes whole bodies and answers with their ETag, or with what a test sets."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.status = 200
        self.body = b""
        self.headers: dict[str, str] = {}
        self.etag: str | None = None

    def talk(self, wire: Wire) -> None:
        while (heard := wire.hear()) is not None:
            self.heard.append(heard)
            etag = self.etag if self.etag is not None else f'"{hashlib.md5(heard.body).hexdigest()}"'
            wire.reply(self.status, self.body, ETag=etag, **self.headers)


def xml(code: str) -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>feedface</Message></Error>'.encode()

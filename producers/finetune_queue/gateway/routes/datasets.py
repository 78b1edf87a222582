"""Datasets: a ZIP into the staging store, streamed through a file of this machine and named by its content."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from finetune_queue.gateway.bodies import check_encoding
from finetune_queue.gateway.models import Dataset
from finetune_queue.gateway.problems import ProblemError, documented, later
from finetune_queue.gateway.routes.deps import BackendDep
from finetune_queue.settings import Settings

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_TYPES = ("application/zip", "application/octet-stream")
_BLOCK = 1 << 20


@router.post(
    "",
    status_code=201,
    responses=documented("bad-request", "request-timeout", "too-large", "unsupported-media-type", "invalid-request")
    | documented("staging-unavailable", "busy"),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES},
        }
    },
)
async def upload(request: Request, backend: BackendDep) -> Dataset:
    """Put a ZIP of images into the staging store; the reply's `dataset` is what a request then names. The body is the
    ZIP itself, under 100 MB. The same content gives the same URL. What is no ZIP or has no image is refused; the rest
    is checked when the job runs.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise ProblemError("unsupported-media-type", f"Send the ZIP itself, as {_TYPES[0]}.")
    check_encoding(request.headers)
    if backend.uploads.locked():
        raise later("busy", "Other datasets are being uploaded.", 5)
    async with backend.uploads:
        # The outer one also around the closing of the file, which writes what is left in its buffer.
        with _spooling(), tempfile.NamedTemporaryFile(prefix="finetune-upload-", suffix=".zip") as file:
            digest, size, block = hashlib.sha256(), 0, bytearray()
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                block += chunk
                if len(block) >= _BLOCK:
                    await run_in_threadpool(file.write, block)
                    block = bytearray()
            await run_in_threadpool(file.write, block)
            file.flush()
            return await run_in_threadpool(_store, Path(file.name), digest.hexdigest(), size, backend.settings)


@contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise later("busy", f"The gateway's temporary folder cannot take more ({error.strerror}).", 30) from error


def _store(path: Path, digest: str, size: int, settings: Settings) -> Dataset:
    # Imported late: the check needs Pillow, which other calls do not pay for.
    from finetune_queue.datasets.check import glance
    from finetune_queue.staging import put_zip, sentence

    if wrong := glance(path):
        raise ProblemError("invalid-request", "; ".join(map(sentence, wrong)))
    return Dataset(dataset=put_zip(path, digest, settings), bytes=size, sha256=digest)

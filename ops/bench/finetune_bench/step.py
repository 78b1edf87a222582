"""One step of a worker, or what it is compared with, in a process of its own: `python -m finetune_bench.step HOW ...`.

| HOW | does |
|---|---|
| `weights URL FILE` | downloads weights, verifies and stores them: the whole of a worker's way |
| `upload URL FILE` | puts a dataset to a presigned URL |
| `check FILE` | checks a dataset |
| `testzip FILE` | lets Python's zipfile test it |

It prints what that took as a line of JSON, and when weights were downloaded and verified. The start, the imports and a
first small transfer are not counted, as a worker runs already.
"""

import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import structlog

from finetune_bench import proc
from finetune_queue.datasets.check import check_archive
from finetune_queue.storage import Place
from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.transfer.download import download
from finetune_worker.transfer.put import upload_presigned
from finetune_worker.transfer.safetensors import verify_safetensors

SMALL = "small.bin"
"""The file beside the others that the first transfer is made with."""


def _weights(url: str, file: str) -> float:
    download(url, Path(file), allow_loopback=True)
    verify_safetensors(Path(file))
    downloaded = time.perf_counter()
    Place(Path(file).with_suffix(".stored").absolute().as_uri()).put_file(Path(file), "weights.safetensors")
    return downloaded


def _upload(url: str, file: str) -> None:
    target = PresignedUpload.model_validate({"presigned_url": url, "s3_url": url})
    upload_presigned(target, Path(file), allow_loopback=True)


def _warm_up(url: str) -> None:
    """Make a first transfer of a small file: what is imported when it is first needed is there now."""
    small = urljoin(url, SMALL)
    with tempfile.TemporaryDirectory() as folder:
        got = Path(folder) / SMALL
        download(small, got, allow_loopback=True)
        Place(Path(folder).as_uri()).put_file(got, "stored")
        _upload(small, str(got))


def _check(file: str) -> None:
    if not check_archive(Path(file), trigger_word="1MAN").ok:
        raise ValueError(file)


def _testzip(file: str) -> None:
    with zipfile.ZipFile(file) as archive:
        if archive.testzip() is not None:
            raise ValueError(file)


_STEPS: dict[str, Callable[..., float | None]] = {
    "weights": _weights,
    "upload": _upload,
    "check": _check,
    "testzip": _testzip,
}


def main() -> None:
    """Do the step."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    step = _STEPS[sys.argv[1]]
    if "://" in sys.argv[2]:
        _warm_up(sys.argv[2])
    before = proc.resident(os.getpid())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (proc(5))
    began = time.perf_counter()
    downloaded = step(*sys.argv[2:])
    took = {"seconds": time.perf_counter() - began}
    if downloaded is not None:
        took["downloaded"] = downloaded - began
    peak = proc.peak(os.getpid())
    sys.stdout.write(json.dumps({**took, "grown": peak - before, "peak": peak}) + "\n")


if __name__ == "__main__":
    main()

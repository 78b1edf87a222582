"""A job's weights, from where the workers stored them to a file of the caller's."""

import hashlib
import os
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from finetune_queue.contract import JobRecord
from finetune_queue.contract.job import Weights
from finetune_queue.errors import NotPossibleError, TargetError, WeightsDamagedError, WeightsUnavailableError
from finetune_queue.progress import OnProgress
from finetune_queue.storage import ObjectMissingError, Place, StorageError, whole_file

_BLOCK = 1 << 20


def fetch_weights(
    job: JobRecord, target: str | os.PathLike[str], *, force: bool, on_progress: OnProgress | None = None
) -> Path:
    """Copy a job's weights, see :meth:`finetune_queue.sdk.job.Job.download`."""
    weights = job.weights
    if weights is None:
        yet = "" if job.state.terminal else " yet"
        message = f"Job {job.id} has no weights{yet}: it {job.state.sentence}."
        raise NotPossibleError(message)
    try:
        path = _target(job.id, target)
        if _is_there(path, weights, force=force):
            return path
        with whole_file(path) as file:
            digest, done = hashlib.sha256(), 0
            with closing(_blocks(job.id, weights)) as blocks:
                for block in blocks:
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    if on_progress is not None:
                        _tell(on_progress, done, weights.bytes)
            _check(job.id, weights, done, digest.hexdigest())
    except _StoppedError as stopped:
        raise stopped.error from None
    except (StorageError, OSError) as error:
        message = f"The weights cannot be written: {error}"
        raise TargetError(message) from error
    return path


class _StoppedError(Exception):
    """Wraps an OSError that ``on_progress`` raised, so that it is not taken for an error of the file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _tell(on_progress: OnProgress, done: int, total: int) -> None:
    try:
        on_progress(done, total)
    except OSError as error:
        raise _StoppedError(error) from None


def _target(job_id: str, target: str | os.PathLike[str]) -> Path:
    """Return the file that is meant.

    Raises:
        TargetError: its folder is not there.
    """
    path = Path(target)
    if path.is_dir() or os.fspath(target).endswith(os.sep):
        path = path / f"{job_id}.safetensors"
    if not path.parent.is_dir():
        message = f"There is no folder {path.parent}. Make it, or name another target."
        raise TargetError(message)
    return path


def _is_there(path: Path, weights: Weights, *, force: bool) -> bool:
    """Tell whether the file is there and holds these weights.

    Raises:
        TargetError: what is there must not be replaced.
    """
    if not os.path.lexists(path):
        return False
    if not path.is_file():  # a device, say, which a rename would replace
        message = f"{path} is there and is no file. Name another target."
        raise TargetError(message)
    try:
        if _has(path, weights):
            return True
        what = "is another file"
    except OSError as error:
        what = f"is there and cannot be compared ({error.strerror})"
    if force:
        return False
    message = f"{path} {what}. Name another target, or replace it by force (--force)."
    raise TargetError(message)


def _has(path: Path, weights: Weights) -> bool:
    with path.open("rb") as file:
        same_size = os.fstat(file.fileno()).st_size == weights.bytes
        return same_size and hashlib.file_digest(file, "sha256").hexdigest() == weights.sha256


def _blocks(job_id: str, weights: Weights) -> Generator[bytes, None, None]:
    """Yield what is stored, block by block.

    Raises:
        WeightsUnavailableError: it cannot be read, or not to its end.
    """
    folder, _, name = weights.url.rpartition("/")
    try:
        with Place(folder).open_read(name) as source:
            while block := source.read(_BLOCK):
                yield block
    except ObjectMissingError as error:
        message = f"The weights of job {job_id} are not at {weights.url}: {_why_not(weights.url)}"
        raise WeightsUnavailableError(message) from error
    except (StorageError, OSError) as error:
        message = f"The weights of job {job_id} cannot be read from here: {error}"
        raise WeightsUnavailableError(message) from error


def _why_not(url: str) -> str:
    if url.startswith("file:"):
        return (
            "this machine has no such file. If the workers' artifact store is on another machine, mount it here under "
            "the same path, or download there; otherwise the file was removed."
        )
    return "the object was removed, or the environment leads to another store (docs/stores.md)."


def _check(job_id: str, weights: Weights, size: int, sha256: str) -> None:
    """Compare what came with what the job recorded.

    Raises:
        WeightsDamagedError: they differ.
    """
    if size != weights.bytes:
        what = f"{size:,} bytes, not {weights.bytes:,}"
    elif sha256 != weights.sha256:
        what = f"the sha256 {sha256}, not {weights.sha256}"
    else:
        return
    message = (
        f"{weights.url} is not what job {job_id} stored: it has {what}. Nothing was kept here. Try again; if it stays "
        "so, somebody has changed what is stored."
    )
    raise WeightsDamagedError(message)

"""The folder of a queue's files on this machine: the weights that are coming in, and scratch folders of running stages.

All workers of a queue on one machine share it, so that a download goes on where another worker's broke off.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from finetune_queue.contract import JobState
from finetune_queue.store import JobStore, database_of
from finetune_worker.transfer.errors import NoRoom
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.partfile import MAKE_ROOM, discard

_PART = ".part"

_LEFT_AFTER = 24 * 3600.0
"""Seconds after which a scratch folder is one that a killed worker left: no transfer takes more than an hour."""

_ROOM = TransferLimits().max_bytes
"""Bytes that must stay free on the disk, or parts of failed jobs are removed: as many as the largest file has."""


class WorkFolderError(NoRoom):
    """The folder cannot be used, or not safely; ``detail`` says why and what to do."""


class WorkFolder:
    """The folder, and its clean-up. If it is gone it is made again: whatever tidies up ``/tmp`` may remove it."""

    def __init__(self, redis_url: str, jobs: JobStore) -> None:
        """Make the folder if it is not there. Each queue has one of its own, since the clean-up removes the parts of
        jobs that the queue does not know; it stays the same when the queue's password changes.

        Raises:
            WorkFolderError: it cannot be made, or others may write there.
        """
        self._jobs = jobs
        queue = hashlib.sha256(database_of(redis_url).encode()).hexdigest()[:12]
        self._path = Path(tempfile.gettempdir()) / f"finetune-queue-{queue}"
        self.ready()  # so that a worker with an unfit folder does not start

    def ready(self) -> Path:
        """Make the folder if needed, and return it if it is ours alone: any other user who may write there could change
        weights unnoticed.

        Raises:
            WorkFolderError: it cannot be made, or others may write there.
        """
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            found = self._path.lstat()
        except OSError as error:
            raise self._failed(error) from error
        if not stat.S_ISDIR(found.st_mode):
            raise self._unfit("it is a link or a file, not a folder")
        if found.st_uid != os.geteuid():
            raise self._unfit("it belongs to another user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise self._unfit("other users have access to it")
        return self._path

    def _failed(self, error: OSError) -> WorkFolderError:
        why = error.strerror or type(error).__name__
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return self._unfit(why)
        return WorkFolderError("disk_full", f"The folder {self._path} cannot be used: {why}. {MAKE_ROOM}")

    def _unfit(self, why: str) -> WorkFolderError:
        action = "Remove it, or let TMPDIR name a folder of the worker's own."
        return WorkFolderError("disk_failed", f"The folder {self._path} cannot be used: {why}. {action}")

    def part_of(self, job_id: str) -> Path:
        """Return where a job's weights are while they come in.

        Raises:
            WorkFolderError: the folder cannot be used.
        """
        return self.ready() / f"{job_id}{_PART}"

    def scratch(self) -> "tempfile.TemporaryDirectory[str]":
        """Make a folder that is removed when its ``with`` block ends.

        Raises:
            WorkFolderError: it cannot be made.
        """
        folder = self.ready()
        try:
            return tempfile.TemporaryDirectory(dir=folder)
        except OSError as error:
            raise self._failed(error) from error

    def clean(self) -> int:
        """Remove the parts of jobs that need them no more, and the scratch folders that killed workers left. Returns
        how many were removed.

        Raises:
            RedisError: the store cannot be asked which jobs there are.
            WorkFolderError, OSError: the folder cannot be used, or something in it not be removed.
        """
        return self._clean_scratch() + self._clean_parts()

    def _clean_scratch(self) -> int:
        before = time.time() - _LEFT_AFTER
        gone = 0
        for folder in self.ready().iterdir():
            with suppress(FileNotFoundError):  # its stage has just ended, or another worker removes it, too
                if folder.is_dir() and folder.stat().st_mtime < before:
                    shutil.rmtree(folder)
                    gone += 1
        return gone

    def _clean_parts(self) -> int:
        parts = {path.name.removesuffix(_PART): path for path in self.ready().glob(f"*{_PART}")}
        # A failed download may be retried, so its part is kept as long as the job, where there is room.
        over = {JobState.SUCCEEDED, JobState.CANCELLED}
        jobs, unreadable = self._jobs.read_many(list(parts))
        kept = {job.id for job in jobs if job.state not in over} | unreadable  # a newer worker goes on with those
        gone = [path for job_id, path in parts.items() if job_id not in kept]
        for path in gone:
            discard(path)
        return len(gone) + self._make_room({job.id: parts[job.id] for job in jobs if job.state is JobState.FAILED})

    def _make_room(self, failed: dict[str, Path]) -> int:
        """Remove parts of failed jobs, the oldest first, until the largest file has room. All that they are for is to
        spare a retry its download. Returns how many were removed."""
        gone = 0
        for job_id, part in sorted(failed.items(), key=lambda each: _written(each[1])):
            if shutil.disk_usage(self._path).free >= _ROOM:
                break
            still = self._jobs.get_many([job_id])  # somebody may have retried it meanwhile
            if still and still[0].state is JobState.FAILED:
                discard(part)
                gone += 1
        return gone


def _written(path: Path) -> float:
    """Return when a file was last written; long ago if another worker has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

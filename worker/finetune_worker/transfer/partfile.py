"""A download that is not whole yet: the bytes, and beside them what is known of the object they belong to.

`x.part` grows; `x.part.json` names the object (its strong ETag and length) and says how many of the bytes were on the
disk for sure at the last checkpoint. After a crash only those count: a power cut may leave a file of the right length
with holes in it. The bytes kept are hashed again when the download goes on, so that the digests are those of the file.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from finetune_worker.transfer.digests import Expected, Hashes
from finetune_worker.transfer.errors import NoRoom, PartBusy
from finetune_worker.wire.urls import safe_url

CHECKPOINT_BYTES = 64 * 1024 * 1024
SPARE_BYTES = 16 * 1024 * 1024
"""Kept free on the disk, for the sidecar and for others."""

_READ = 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """The object that a part belongs to."""

    etag: str
    total: int
    expected: Expected


@dataclass(frozen=True, slots=True)
class _Sidecar:
    source: str
    etag: str
    total: int
    md5: str | None
    crc32c: str | None
    synced: int


class PartFile:
    """One part, locked for this process: a worker that was thought dead must not write into its successor's file.

    Raises:
        PartBusy: another worker holds it.
        NoRoom: here and on writing; the disk is full.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.known: Known | None = None
        """The object of the bytes kept; None: nothing is kept."""
        self.etag: str | None = None
        """The object's ETag, strong or not."""
        self.size = 0
        """Bytes in the file."""
        self.hashes = Hashes(Expected())
        self._source = safe_url(url)
        self._synced = 0
        with _disk():
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _disk():
                self._lock()
                self._load()
        except BaseException:
            self.hashes.close()
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.known is not None and self._synced != self.size:
                self.checkpoint()
        except NoRoom as failed:
            if error is None:
                raise
            # What ended the download is the news; the last checkpoint still holds.
            _log.warning("part_checkpoint_failed", part=self.path.name, code=failed.code)
        finally:
            self.hashes.close()
            os.close(self._file)

    @property
    def whole(self) -> bool:
        return self.known is not None and self.size == self.known.total

    def begin(self, known: Known | None, expect: Expected) -> None:
        """Start from the first byte of an object; without ``known`` it cannot be resumed."""
        with _disk():
            _sidecar(self.path).unlink(missing_ok=True)
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self.known, self.size, self._synced, self.etag = known, 0, 0, None
        self._expect(expect)
        if known is not None:
            self.checkpoint()

    def require_room(self, total: int) -> None:
        """Check that the disk can take the rest of ``total`` bytes."""
        free = shutil.disk_usage(self.path.parent).free
        need = total - self.size + SPARE_BYTES
        if need > free:
            raise NoRoom("disk_full", f"The download needs {need:,} more bytes on the disk, which has {free:,} free.")

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            with _disk():
                written = os.write(self._file, view)
            self.hashes.update(view[:written])
            self.size += written
            view = view[written:]
        if self.known is not None and self.size - self._synced >= CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Bring the bytes to the disk, then the note that they are there."""
        with _disk():
            os.fsync(self._file)
            if self.known is not None:
                self._note(self.known)
        self._synced = self.size

    def _note(self, known: Known) -> None:
        note = _Sidecar(
            source=self._source,
            etag=known.etag,
            total=known.total,
            md5=known.expected.md5,
            crc32c=known.expected.crc32c,
            synced=self.size,
        )
        path = _sidecar(self.path)
        fresh = path.with_name(path.name + ".new")
        with fresh.open("w") as file:
            json.dump(asdict(note), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync_folder(path.parent)

    def drop(self) -> None:
        """Forget the bytes."""
        self.begin(None, Expected())

    def _expect(self, expect: Expected) -> None:
        self.hashes.close()
        self.hashes = Hashes(expect)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PartBusy("part_busy", f"Another worker is downloading into {self.path.name}.") from None

    def _load(self) -> None:
        """Take up what an earlier download left, if it is sure what that was."""
        note = _read(_sidecar(self.path))
        length = os.fstat(self._file).st_size
        if note is None or note.source != self._source or length < note.synced:
            self.drop()
            return
        expect = Expected(md5=note.md5, crc32c=note.crc32c)
        self.known = Known(note.etag, note.total, expect)
        self.etag = note.etag
        self._expect(expect)
        os.ftruncate(self._file, note.synced)
        os.lseek(self._file, 0, os.SEEK_SET)
        while data := os.read(self._file, _READ):
            self.hashes.update(data)
            self.size += len(data)
        self._synced = self.size


@contextmanager
def _disk() -> Iterator[None]:
    """Name what the file system says."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoRoom("disk_full", "The disk is full.") from None
        raise NoRoom("disk_failed", f"The file system does not take the download: {error.strerror}.") from None


def discard(part: Path) -> None:
    """Delete what belongs to a part, also after the part itself was moved to where it is wanted."""
    sidecar = _sidecar(part)
    for path in (part, sidecar, sidecar.with_name(sidecar.name + ".new")):
        path.unlink(missing_ok=True)


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read(path: Path) -> _Sidecar | None:
    try:
        note = _Sidecar(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None  # none, or cut short by a crash: then the bytes are of unknown origin
    sizes = isinstance(note.synced, int) and isinstance(note.total, int) and 0 <= note.synced <= note.total
    texts = all(isinstance(text, str) for text in (note.source, note.etag))
    return note if sizes and texts else None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems cannot sync a folder; the file's own sync has been done.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)

"""A download that is not whole yet: the bytes, and beside them what is known of the object they belong to.

`x.part` grows; `x.part.json`, the note, names the object (its strong ETag and length) and the system's boot. A killed
worker leaves exactly the bytes that it wrote, so until the next boot they can be resumed. A power cut may leave a file
of the right length with holes in it: a part from an earlier boot is never taken up.

So resuming needs no fsync: neither the note nor the folder has one. The bytes of a whole part have one before anybody
reads them. When the kernel cannot write a page to the disk, it drops the page, reports that to fsync alone, and gives
the next reader what the disk had before: that would be stored under the sha256 of what was downloaded. The copy that
must outlast a power cut is the artifact store's, which makes its own fsync (`finetune_queue.storage`).

The kept bytes are hashed again when the download goes on, so that the digests are those of the file.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from finetune_queue.progress import OnProgress
from finetune_worker.transfer.beside import Beside
from finetune_worker.transfer.digests import Checksum, Hashing
from finetune_worker.transfer.errors import NoRoom, PartBusy
from finetune_worker.wire.urls import safe_url

SYNC_BYTES = 64 * 1024 * 1024
"""Bytes between two fsyncs, which run beside the transfer: a failing disk is noticed soon, memory does not fill up with
unwritten bytes, and at the end only the last ones have to be waited for."""
MAX_UNSYNCED = 4 * SYNC_BYTES
"""Bytes without an fsync at which the download waits for a disk that is slower than the network."""
SPARE_BYTES = 16 * 1024 * 1024
"""Bytes to leave free on the disk, for the note and for others."""

_READ = 1024 * 1024
MAKE_ROOM = "Make room there, or set TMPDIR to a larger disk."
_MEND = "Fix the disk, or set TMPDIR to another one."
_FULL = {
    errno.ENOSPC: f"The disk of {{folder}} is full. {MAKE_ROOM}",
    errno.EDQUOT: "The worker's quota on the disk of {folder} is used up. Raise it, or set TMPDIR to another disk.",
    errno.EFBIG: "The worker may write no file of this size in {folder}. Raise `ulimit -f`, or set TMPDIR to a disk "
    "that takes larger files.",
}
"""What to tell a person, by the system's error, when the download does not fit."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """The object that a part belongs to."""

    etag: str
    total: int


class _Note(BaseModel):
    """The note. One with other fields was cut short, or is another version's."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    source: str
    etag: str
    total: NonNegativeInt
    checksum: Checksum | None
    boot: str


class PartFile:
    """One part, locked for this process: a worker that was thought dead must not write into its successor's file.

    Raises:
        PartBusy: another worker holds it.
        NoRoom: here and on writing; the disk is full.
    """

    def __init__(self, path: Path, url: str, report: OnProgress | None = None) -> None:
        """Open the part; ``report`` is told of the kept bytes while they are hashed again."""
        self.path = path
        self.known: Known | None = None
        """The object that the bytes in the file are of; None: they cannot be resumed."""
        self.checksum: Checksum | None = None
        """What the storage says of the whole object."""
        self.size = 0
        """Bytes in the file."""
        self._source = safe_url(url)
        self._synced = 0
        self._syncing = Beside("sync")
        self._hashing = Hashing()
        self._hash(None)
        with _disk(path.parent):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _disk(self.path.parent):
                self._lock()
                note = self._usable_note()
            self._load(note, report)
        except BaseException:
            self._hashing.close()
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._syncing.close()
        self._hashing.close()
        with self._or_lost():  # some network file systems tell of a full disk only now
            os.close(self._file)

    @property
    def whole(self) -> bool:
        return self.known is not None and self.size == self.known.total

    @property
    def sha256(self) -> str:
        """Of the bytes in the file, in hex."""
        self._hashing.wait()
        return self._sha256.hexdigest()

    @property
    def damaged(self) -> bool:
        """Whether the bytes differ from what the storage's checksum says."""
        self._hashing.wait()
        return self._check is not None and self.checksum is not None and self._check.hexdigest() != self.checksum.value

    def begin(self, known: Known | None, checksum: Checksum | None) -> None:
        """Start from the first byte of an object; without ``known`` it cannot be resumed."""
        self._syncing.wait()
        with _disk(self.path.parent):
            _sidecar(self.path).unlink(missing_ok=True)  # first: a worker killed here leaves no note with other bytes
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self.known, self.size, self._synced = known, 0, 0
        self._hash(checksum)
        if known is not None:
            with _disk(self.path.parent):
                self._write_note(known)

    def require_room(self, total: int) -> None:
        """Check that the disk can take the rest of ``total`` bytes."""
        free = shutil.disk_usage(self.path.parent).free
        need = total - self.size + SPARE_BYTES
        if need > free:
            lack = f"{need / 1e6:,.1f} MB more in {self.path.parent}, which has {free / 1e6:,.1f} MB free"
            raise NoRoom("disk_full", f"The download needs {lack}. {MAKE_ROOM}")

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            with _disk(self.path.parent):
                written = os.write(self._file, view)
            self._hashing.update(view[:written])
            self.size += written
            view = view[written:]
        unsynced = self.size - self._synced
        if unsynced >= SYNC_BYTES and (not self._syncing.busy or unsynced >= MAX_UNSYNCED):
            self._syncing.start(self._sync, self.size)

    def settle(self) -> None:
        """Bring the last bytes to the disk. Must come before anybody reads the file (see the module)."""
        self._syncing.wait()
        if self.size > self._synced:
            self._sync(self.size)

    def _sync(self, size: int) -> None:
        """Bring at least the first ``size`` bytes to the disk."""
        with self._or_lost():
            os.fsync(self._file)
        self._synced = size

    @contextmanager
    def _or_lost(self) -> Iterator[None]:
        """Delete the note if the disk fails: nobody knows which of the written bytes it lost, so none is resumed."""
        try:
            with _disk(self.path.parent):
                yield
        except NoRoom as failed:
            _sidecar(self.path).unlink(missing_ok=True)
            _log.warning("part_lost", part=self.path.name, code=failed.code)
            raise

    def _write_note(self, known: Known) -> None:
        note = _Note(source=self._source, etag=known.etag, total=known.total, checksum=self.checksum, boot=_boot())
        _sidecar(self.path).write_text(note.model_dump_json())  # one that is cut short is none, and no byte is lost yet

    def drop(self) -> None:
        """Forget the bytes."""
        self.begin(None, None)

    def _hash(self, checksum: Checksum | None) -> None:
        """Start to hash from the first byte."""
        self.checksum = checksum
        self._sha256 = hashlib.sha256()
        self._check = None if checksum is None else checksum.start()
        self._hashing.close()
        self._hashing = Hashing(self._sha256, *([] if self._check is None else [self._check]))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PartBusy("part_busy", f"Another worker is downloading into {self.path.name}.") from None

    def _usable_note(self) -> _Note | None:
        """Return the note of an earlier download, if it can be trusted to be about the bytes in the file."""
        note = _read(_sidecar(self.path))
        length = os.fstat(self._file).st_size
        if note is None or note.source != self._source or note.boot != _boot() or length > note.total:
            return None
        return note

    def _load(self, note: _Note | None, report: OnProgress | None) -> None:
        """Take up what an earlier download left."""
        if note is None:
            return  # what is in the file goes when an object begins
        self.known = Known(note.etag, note.total)
        self._hash(note.checksum)
        self._sync(os.fstat(self._file).st_size)
        while data := self._read_on():
            self._hashing.update(data)
            self.size += len(data)
            if report is not None:
                report(self.size, note.total)

    def _read_on(self) -> bytes:
        with _disk(self.path.parent):
            return os.read(self._file, _READ)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Name what the file system says of the folder."""
    try:
        yield
    except OSError as error:
        if said := _FULL.get(error.errno or 0):
            raise NoRoom("disk_full", said.format(folder=folder)) from None
        said = f"The file system of {folder} cannot take the download: {error.strerror}. {_MEND}"
        raise NoRoom("disk_failed", said) from None


def discard(part: Path) -> None:
    """Delete a part and its note."""
    for path in (part, _sidecar(part)):
        path.unlink(missing_ok=True)


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read(path: Path) -> _Note | None:
    try:
        return _Note.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # there is none, or a crash cut it short: nobody knows what the bytes are of


@cache
def _boot() -> str:
    """Name this start of the system, as Linux does (random(4)); where nothing does, no part outlives its process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except FileNotFoundError:
        return uuid.uuid4().hex

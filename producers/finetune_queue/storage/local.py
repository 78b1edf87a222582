"""A folder as a place. A file is written beside its target and then renamed, so a name is whole or absent."""

import glob
import io
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_queue.progress import OnProgress
from finetune_queue.storage.errors import IncompleteError, PlaceMissingError, from_os_error
from finetune_queue.storage.model import Stored

_CHUNK = 1 << 20
_SYNC = 64 << 20
"""Bytes after which a copy is flushed to the disk, so that its progress is real and its end needs no long wait."""
_STALE_SECONDS = 24 * 3600


class Folder:
    """The methods of `Place` on a local folder. Names are checked by `Place`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url_of(self, name: str) -> str:
        return self._path(name).as_uri()

    def put_file(self, local: Path, name: str, on_progress: OnProgress | None) -> Stored:
        with local.open("rb") as source:
            size = os.fstat(source.fileno()).st_size

            def copy(target: io.BufferedWriter) -> None:
                done = synced = 0
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    done += len(chunk)
                    if done - synced >= _SYNC:
                        _sync(target)
                        _forget(target)
                        synced = done
                    if on_progress is not None:
                        on_progress(done, size)
                if done != size:
                    raise IncompleteError(f"{local} changed while it was copied: {done} of {size} bytes.")

            self._write(name, copy)
        return self.info(name)

    def put_bytes(self, data: bytes, name: str) -> None:
        self._write(name, lambda target: target.write(data))

    def _path(self, name: str) -> Path:
        return self.root / name

    def _write(self, name: str, fill: Callable[[io.BufferedWriter], object]) -> None:
        target = self._path(name)
        with _reported(target):
            self._make(target.parent)
            with whole_file(target) as file:
                fill(file)
            for folder in target.parents:
                _sync_folder(folder)
                if folder == self.root:
                    break

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            sentence = f"The folder {folder} cannot be created: {error.strerror}."
            raise PlaceMissingError(sentence, f"Check what is at {self.root}, or correct its name.") from error

    def open_read(self, name: str) -> io.BufferedReader:
        path = self._path(name)
        with _reported(path):
            return path.open("rb")

    def info(self, name: str) -> Stored:
        path = self._path(name)
        with _reported(path):
            found = path.stat()
        return Stored(size=found.st_size, etag=f"{found.st_mtime_ns:x}-{found.st_size:x}")

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _reported(path):
            path.unlink(missing_ok=True)

    def drop_parts(self, folder: str) -> None:
        path = self._path(folder)
        with _reported(path):
            for part in path.glob(".*.part"):
                part.unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[io.BufferedWriter]:
    """Yield a file beside `target` that takes its name, and the place of what had it, when the block ends and all bytes
    are on the disk; it is removed if the block raises.

    Raises:
        StorageError: what an OSError of the block, or of the file itself, means.
    """
    with _reported(target):
        _drop_stale(target)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                yield file
                _sync(file)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, str(path)) from error


def _drop_stale(target: Path) -> None:
    """Remove what a killed process left behind under this name: weights are large, and nobody else would."""
    before = time.time() - _STALE_SECONDS
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with suppress(FileNotFoundError):  # another writer has just renamed its part
            if part.stat().st_mtime < before:
                part.unlink()


def _sync(file: io.BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _forget(file: io.BufferedWriter) -> None:
    """Drop the file's flushed pages from the page cache: nobody reads the copy soon, and with some GB cached the system
    takes longer to find free memory than to write."""
    if sys.platform == "linux":
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    """Make names in a folder durable, after a file in it was renamed or a folder made."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

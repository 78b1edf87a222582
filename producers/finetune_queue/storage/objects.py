"""A bucket as a place, through fsspec. PUTs and multipart uploads are atomic: a name is whole or absent."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_queue.progress import OnProgress
from finetune_queue.storage import drivers
from finetune_queue.storage.errors import IncompleteError, ObjectMissingError, StorageError
from finetune_queue.storage.model import Stored
from finetune_queue.storage.urls import ObjectAddress

_BUFFER = 1 << 20


class Bucket:
    """The methods of `Place` on an object store. Names are checked by `Place`."""

    def __init__(self, address: ObjectAddress) -> None:
        self._address = address
        self._driver = drivers.DRIVERS[address.scheme]

    def url_of(self, name: str) -> str:
        return f"{self._address.scheme}://{self._path(name)}"

    def put_file(self, local: Path, name: str, on_progress: OnProgress | None) -> Stored:
        size = local.stat().st_size
        callback = _callback(on_progress, size)
        with self._reported(name, writing=True):
            self._fs().put_file(str(local), self._path(name), callback=callback, **self._driver.put)
        callback.absolute_update(size)
        stored = self.info(name)
        if stored.size != size:
            raise IncompleteError(f"{self.url_of(name)} has {stored.size} bytes of the {size} that were sent.")
        return stored

    def put_bytes(self, data: bytes, name: str) -> None:
        with self._reported(name, writing=True):
            self._fs().pipe_file(self._path(name), data)

    def open_read(self, name: str) -> io.BufferedReader:
        # Drivers differ in what they say when a name is only a prefix of others.
        stored = self.info(name)
        with self._reported(name):
            inner = self._fs().open(self._path(name), "rb", **self._driver.open)
        return io.BufferedReader(_Reader(self, name, stored, inner), _BUFFER)

    def info(self, name: str) -> Stored:
        with self._reported(name):
            found = self._fs().info(self._path(name))
            if found.get("type") == "directory":
                raise FileNotFoundError(name)
        etag = found.get("ETag") or found.get("etag")
        return Stored(size=int(found["size"]), etag=str(etag) if etag else None)

    def delete(self, name: str) -> None:
        try:
            with self._reported(name):
                self._fs().rm_file(self._path(name))
        except ObjectMissingError:
            return

    def drop_parts(self, folder: str) -> None:
        del folder  # an unfinished upload is not in the bucket's list of objects

    def _path(self, name: str) -> str:
        return f"{self._address.path}/{name}" if name else self._address.path

    def _fs(self) -> Any:
        return drivers.filesystem(self._address.scheme)

    @contextmanager
    def _reported(self, name: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            known = drivers.meaning(error, self._address, self.url_of(name), writing=writing)
            if known is None:
                raise
            raise known from error


class _Reader(io.RawIOBase):
    """A read stream of fsspec that raises this package's errors, and IncompleteError if the object was replaced
    meanwhile."""

    def __init__(self, bucket: Bucket, name: str, stored: Stored, inner: Any) -> None:
        self._bucket = bucket
        self._name = name
        self._stored = stored
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with self._bucket._reported(self._name):  # noqa: SLF001  # one module, one translation of errors
            data: bytes = self._inner.read(len(buffer))
        # Drivers read in ranges, and not every one makes sure that all of them are of the same version of the object.
        if not data and len(buffer) and self._bucket.info(self._name).etag != self._stored.etag:
            raise IncompleteError(f"{self._bucket.url_of(self._name)} changed while it was read.")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _callback(on_progress: OnProgress | None, size: int) -> Any:
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]  # only loaded when used

    if on_progress is None:
        return Callback()

    report = on_progress

    class Report(Callback):  # type: ignore[misc]  # the library has no types
        done = -1

        def call(self, *_args: object, **_options: object) -> None:
            # Parts that are sent at the same time end in any order: the progress must not go back.
            if self.value > self.done:
                self.done = self.value
                report(int(self.done), size)

    return Report(size=size)

"""A bucket as a place, through fsspec. PUTs and multipart uploads are atomic: a name is whole or absent."""

import errno
import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_queue.storage.errors import (
    DriverMissingError,
    IncompleteError,
    NoAccessError,
    ObjectMissingError,
    PlaceMissingError,
    StorageError,
    UnavailableError,
)
from finetune_queue.storage.model import Progress, Stored
from finetune_queue.storage.urls import ObjectAddress

_PART = 8 << 20
_READ_AHEAD = 4 << 20
_BUFFER = 1 << 20
_DRIVERS = {"s3": "finetune-queue[s3]", "gs": "gcsfs", "az": "adlfs"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    # The library's own limits would hold up to 500 MB of one upload in memory, and wait for minutes on a dead host.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}, "default_block_size": _READ_AHEAD},
    "gs": {"block_size": _READ_AHEAD},
    "az": {"blocksize": _READ_AHEAD},
}
_PUT: dict[str, dict[str, Any]] = {
    "s3": {"chunksize": _PART, "max_concurrency": 4},
    "gs": {"chunksize": _PART},
    "az": {"overwrite": True},
}
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs")
_BUSY = frozenset({errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)})


class Bucket:
    """The methods of `Place` on an object store. Names are checked by `Place`."""

    def __init__(self, address: ObjectAddress, options: Mapping[str, Any]) -> None:
        self._address = address
        self._options = options
        self._lock = threading.Lock()
        self._filesystem: tuple[int, Any] | None = None

    def url_of(self, name: str) -> str:
        return f"{self._address.scheme}://{self._path(name)}"

    def local_path(self, name: str) -> None:
        del name

    def put_file(self, local: Path, name: str, on_progress: Progress | None) -> Stored:
        size = local.stat().st_size
        with self._reported(name):
            self._fs().put_file(
                str(local), self._path(name), callback=_callback(on_progress, size), **_PUT[self._address.scheme]
            )
        stored = self.info(name)
        if stored.size != size:
            raise IncompleteError(f"{self.url_of(name)} has {stored.size} bytes of the {size} that were sent.")
        return stored

    def put_bytes(self, data: bytes, name: str) -> Stored:
        with self._reported(name):
            self._fs().pipe_file(self._path(name), data)
        return self.info(name)

    def open_read(self, name: str) -> io.BufferedReader:
        # Drivers differ in what they say when a name is only a prefix of others.
        self.info(name)
        with self._reported(name):
            return io.BufferedReader(_Reader(self, name, self._fs().open(self._path(name), "rb")), _BUFFER)

    def info(self, name: str) -> Stored:
        with self._reported(name):
            found = self._fs().info(self._path(name))
            if found.get("type") == "directory":
                raise FileNotFoundError(name)
        modified = found.get("LastModified") or found.get("last_modified") or found.get("mtime")
        etag = found.get("ETag") or found.get("etag")
        return Stored(
            size=int(found["size"]),
            etag=str(etag) if etag else None,
            modified=modified if isinstance(modified, datetime) else None,
        )

    def delete(self, name: str) -> None:
        try:
            with self._reported(name):
                self._fs().rm_file(self._path(name))
        except ObjectMissingError:
            return

    def drop_parts(self, folder: str) -> None:
        del folder  # an unfinished upload is in none

    def _path(self, name: str) -> str:
        return f"{self._address.path}/{name}" if name else self._address.path

    def _fs(self) -> Any:
        """The file system of this process: its connections and event loop do not survive a fork."""
        with self._lock:
            if self._filesystem is None or self._filesystem[0] != os.getpid():
                self._filesystem = (os.getpid(), self._connect())
            return self._filesystem[1]

    def _connect(self) -> Any:
        scheme = self._address.scheme
        try:
            import fsspec  # type: ignore[import-untyped]  # only loaded when used

            options = {**_DEFAULTS[scheme], **self._options}
            return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        except ImportError as error:
            raise DriverMissingError(
                f"{scheme}:// needs a library that is not installed: pip install '{_DRIVERS[scheme]}'."
            ) from error

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            known = self._classify(error, name)
            if known is None:
                raise
            raise known from error

    def _classify(self, error: Exception, name: str) -> StorageError | None:
        """What an exception of fsspec or of the store's own library means, or None when it is neither's."""
        url = self.url_of(name)
        code = _service_code(error)
        if code == "NoSuchBucket":
            return PlaceMissingError(
                f"The bucket {self._address.bucket} does not exist. Create it, or mend the setting."
            )
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(f"There is no object {url}.")
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "NoCredentialsError",
            "PartialCredentialsError",
        ):
            why = code or ("there are no credentials" if not isinstance(error, PermissionError) else "access denied")
            return NoAccessError(f"{url} may not be used: {why}. Check the credentials and their rights on the bucket.")
        if isinstance(error, OSError | TimeoutError) or type(error).__module__.split(".")[0] in _LIBRARIES:
            why = code or (
                "it is busy" if isinstance(error, OSError) and error.errno in _BUSY else type(error).__name__
            )
            return UnavailableError(f"The store of {url} cannot be used now: {why}.")
        return None


class _Reader(io.RawIOBase):
    """A read stream of fsspec whose errors are those of this package."""

    def __init__(self, bucket: Bucket, name: str, inner: Any) -> None:
        self._bucket = bucket
        self._name = name
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with self._bucket._reported(self._name):  # noqa: SLF001  # one module, one translation of errors
            data: bytes = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _service_code(error: BaseException | None) -> str | None:
    """The code in the S3 error that lies behind an exception, such as `NoSuchBucket`."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return str(code) if code else None
        error = error.__cause__ or error.__context__
    return None


def _callback(on_progress: Progress | None, size: int) -> Any:
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]  # only loaded when used

    if on_progress is None:
        return Callback()

    report = on_progress

    class Report(Callback):  # type: ignore[misc]  # the library has no types
        def call(self, *_args: object, **_options: object) -> None:
            report(int(self.value), size)

    return Report(size=size)

"""One place to store things, whatever it is."""

import io
import uuid
from pathlib import Path

from finetune_queue.progress import OnProgress
from finetune_queue.storage.errors import ObjectMissingError
from finetune_queue.storage.local import Folder
from finetune_queue.storage.model import Backend, Stored
from finetune_queue.storage.objects import Bucket
from finetune_queue.storage.urls import parse_url

__all__ = ["Place", "Stored"]


class Place:
    """A folder (`file:///srv/artifacts`, `file://./var/artifacts`) or a bucket (`s3://`, `gs://`, `az://`).

    Credentials come from the environment (`docs/stores.md`). Nothing is opened before the first use. May be shared by
    threads, and used on both sides of a fork.

    Names are relative paths with slashes. Every method raises the errors of the tree under `StorageError`, and
    ValueError for a name that climbs out of the place.
    """

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Raises:
            BadUrlError: the URL names no place.
        """
        address = parse_url(url)
        self._backend: Backend = Folder(address) if isinstance(address, Path) else Bucket(address)
        self.url = self._backend.url_of("").rstrip("/")

    def __repr__(self) -> str:
        return f"Place({self.url!r})"

    def put_file(self, local: Path, name: str, on_progress: OnProgress | None = None) -> Stored:
        """Store a copy of a local file: the name appears at once and whole, replacing what was there.

        Raises:
            OSError: `local` itself cannot be read.
        """
        return self._backend.put_file(local, checked_name(name), on_progress)

    def put_once(self, local: Path, name: str) -> str:
        """Store a copy of a local file whose content decides the name, unless it is there already; returns its URL.

        Raises:
            OSError: `local` itself cannot be read.
        """
        if not self.exists(name):
            self.put_file(local, name)
        return self.url_of(name)

    def put_bytes(self, data: bytes, name: str) -> None:
        """Store a small object, such as a manifest, in the same way."""
        self._backend.put_bytes(data, checked_name(name))

    def open_read(self, name: str) -> io.BufferedReader:
        """Return a stream of an object's bytes, which the caller closes; it reads ahead by a few megabytes at most."""
        return self._backend.open_read(checked_name(name))

    def info(self, name: str) -> Stored:
        """Return what the place says of an object.

        Raises:
            ObjectMissingError: there is nothing of this name.
        """
        return self._backend.info(checked_name(name))

    def exists(self, name: str) -> bool:
        """Tell whether there is an object of this name."""
        try:
            self._backend.info(checked_name(name))
        except ObjectMissingError:
            return False
        return True

    def drop_parts(self, folder: str) -> None:
        """Remove the unfinished files that killed writers left in a folder; a writer that is still at work there fails.
        Does nothing in a bucket: a lifecycle rule ends uploads that were never finished."""
        self._backend.drop_parts(checked_name(folder))

    def url_of(self, name: str) -> str:
        """Return the object's full URL, as `sources.resolve_dataset` and other places read it."""
        return self._backend.url_of(checked_name(name))

    def check_writable(self) -> None:
        """Write, look up and remove a small object. Raises the error that a job's writes would meet, if any."""
        name = f".finetune-check-{uuid.uuid4().hex}"
        self._backend.put_bytes(b"finetune-queue was here", name)
        self._backend.info(name)  # as `put_file` does of what it wrote, which takes the right to read
        self._backend.delete(name)


def checked_name(name: str) -> str:
    """Return the name, if it can be that of an object inside a place.

    Raises:
        ValueError: it is empty, absolute, or has a part that is empty, `.` or `..`.
    """
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is not the name of an object inside a place")
    return name

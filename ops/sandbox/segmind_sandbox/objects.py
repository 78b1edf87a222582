"""The uploaded objects: bytes in a temporary folder, removed at exit, and what is known of each in memory."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One version of an object. A replaced version stays readable for those that have opened it."""

    path: Path
    size: int
    md5: str
    content_type: str
    public: bool
    modified: datetime


class ObjectWriter:
    """Takes an upload's chunks; the object exists only when it is committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.md5 = hashlib.md5(usedforsecurity=False)
        self._file: BinaryIO = path.open("xb")

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self.md5.update(chunk)
        self.size += len(chunk)

    def close(self) -> None:
        """Close the file; the bytes stay."""
        self._file.close()

    def discard(self) -> None:
        """Throw the upload away."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class ObjectReader:
    """Reads one object by position."""

    def __init__(self, stored: StoredObject) -> None:
        self.size = stored.size
        self._descriptor = os.open(stored.path, os.O_RDONLY)

    def read(self, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start``."""
        return os.pread(self._descriptor, length, start)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


class ObjectStore:
    """Objects by key."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="segmind-sandbox-", ignore_cleanup_errors=True)
        self._numbers = itertools.count()
        self._objects: dict[str, StoredObject] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: str) -> StoredObject | None:
        """The object's present version."""
        return self._objects.get(key)

    def new_path(self) -> Path:
        """A path in the folder that nothing uses yet."""
        return Path(self._folder.name) / str(next(self._numbers))

    def writer(self) -> ObjectWriter:
        """Start an upload."""
        return ObjectWriter(self.new_path())

    def commit(self, key: str, writer: ObjectWriter, *, content_type: str, public: bool) -> StoredObject:
        """Make a finished upload the object's present version."""
        writer.close()
        now = datetime.now(UTC).replace(microsecond=0)
        stored = StoredObject(writer.path, writer.size, writer.md5.hexdigest(), content_type, public, now)
        previous = self._objects.get(key)
        self._objects[key] = stored
        if previous is not None:
            previous.path.unlink(missing_ok=True)
        return stored

    def clear(self) -> None:
        """Remove all objects."""
        for stored in self._objects.values():
            stored.path.unlink(missing_ok=True)
        self._objects.clear()

    def close(self) -> None:
        """Remove the folder."""
        self._objects.clear()
        self._folder.cleanup()

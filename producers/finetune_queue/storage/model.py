"""What both kinds of place share."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_queue.progress import OnProgress


@dataclass(frozen=True, slots=True)
class Stored:
    """What a place says of an object. `etag` changes with the content."""

    size: int
    etag: str | None


class Backend(Protocol):
    """A folder or a bucket, below `Place`."""

    def url_of(self, name: str) -> str: ...

    def put_file(self, local: Path, name: str, on_progress: OnProgress | None) -> Stored: ...

    def put_bytes(self, data: bytes, name: str) -> None: ...

    def open_read(self, name: str) -> io.BufferedReader: ...

    def info(self, name: str) -> Stored: ...

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""

    def drop_parts(self, folder: str) -> None: ...

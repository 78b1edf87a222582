"""How a transfer fails, named by what the stage does next.

TransferError
├── TryAgain          the same call again after a pause: an upload starts over, a download goes on where it broke
│   ├── NoAnswer      a download's storage is away or busy: the same, however long it lasts
│   └── PartBusy      another worker holds the part: at once into another one
├── NeedNewUrl        ask Segmind for another URL first: this one ended or its signature is refused
├── StartOver         a download's object is not the one it began with, or arrived damaged: the part is gone
├── SourceChanged     an upload's file is not the one it began with: check it again before anything is sent
├── NoRoom            the disk is full: the part is kept, make room and try again; or it fails: fix it and start over
├── Refused           a clear no that will stay one
└── SafetensorsError  the file is whole and is not a safetensors file
"""

from typing import ClassVar


class TransferError(Exception):
    """A transfer that did not succeed. No attribute holds the query of a URL.

    Args:
        code: Stable, snake_case, for programs.
        detail: A sentence for people.
        retry_after: Seconds that the server asked to wait.
    """

    retryable: ClassVar[bool] = False

    gained = False
    """Whether a download that broke off brought, and kept, a good part of its object."""

    def __init__(self, code: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}]"


class TryAgain(TransferError):
    """Nothing is wrong that time does not heal."""

    retryable = True


class NoAnswer(TryAgain):
    """The storage cannot be reached, or cannot answer now. The weights there are paid for."""


class PartBusy(TryAgain):
    """Another worker holds the part: one that was overtaken, since a job has one worker."""


class NeedNewUrl(TransferError):
    """The URL is of no more use."""

    retryable = True


class StartOver(TransferError):
    """What was downloaded so far is of no use and was deleted."""

    retryable = True


class SourceChanged(TransferError):
    """The file to upload is missing, empty or changed while it was sent; the server has no whole copy of it."""


class NoRoom(TransferError):
    """The disk cannot take the file, or did not."""

    retryable = True


class Refused(TransferError):
    """The other side, or a limit of ours, says no."""


class SafetensorsError(TransferError):
    """The weights are not what they should be."""

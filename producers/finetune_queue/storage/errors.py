"""What can go wrong with a place to store things.

```
StorageError
├── BadUrlError         bad_url          the setting or address is wrong
├── DriverMissingError  driver_missing   the library for this kind of address is not installed
├── NoAccessError       no_access        no credentials, or not the right ones; a read-only folder
├── PlaceMissingError   place_missing    the bucket is gone, or the folder cannot be made
├── ObjectMissingError  object_missing   the place is there, the object is not
├── DiskFullError       disk_full        retryable: space can be made
├── IncompleteError     incomplete       retryable: fewer or more bytes arrived than were sent
└── UnavailableError    unavailable      retryable: the store does not answer, or says that it is busy
```
"""

import errno
from typing import ClassVar


class StorageError(Exception):
    """`code` is stable, `sentence` and `fix` (what to do, where that can be said) are for people and hold no secret,
    `retryable` says that waiting may help."""

    code: ClassVar[str] = "storage"
    retryable: ClassVar[bool] = False

    def __init__(self, sentence: str, fix: str = "") -> None:
        super().__init__(f"{sentence} {fix}".rstrip())
        self.sentence = sentence
        self.fix = fix


class BadUrlError(StorageError):
    """The URL of a place is not one that is understood."""

    code = "bad_url"


class DriverMissingError(StorageError):
    """The URL needs a library that is not installed; the sentence says which."""

    code = "driver_missing"


class NoAccessError(StorageError):
    """The system or the store refuses."""

    code = "no_access"


class PlaceMissingError(StorageError):
    """The bucket does not exist, or no longer; the folder cannot be made."""

    code = "place_missing"


class ObjectMissingError(StorageError):
    """There is nothing of this name."""

    code = "object_missing"


class DiskFullError(StorageError):
    """No space, or the quota is used up."""

    code = "disk_full"
    retryable = True


class IncompleteError(StorageError):
    """The object does not have the size of what was sent."""

    code = "incomplete"
    retryable = True


class UnavailableError(StorageError):
    """The store cannot be reached or is busy."""

    code = "unavailable"
    retryable = True


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def from_os_error(error: OSError, what: str) -> StorageError:
    """Return what an error of a local file system means; `what` is the path, as the sentence shall name it."""
    if error.errno in _FULL:
        return DiskFullError(f"There is no space left for {what}.", "Free some, or give the volume more.")
    if error.errno in _REFUSED:
        return NoAccessError(f"{what} may not be used by this user ({error.strerror}).", "Check its owner and mode.")
    if error.errno in _ABSENT:
        return ObjectMissingError(f"There is no file {what}.")
    return UnavailableError(f"{what} cannot be used now: {error.strerror or error}.")

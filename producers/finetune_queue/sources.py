"""Where a request's dataset is: an address that the provider can read itself, or bytes on this machine to upload.

| `dataset` | becomes |
|---|---|
| `https://` | `PublicArchive` after guarded HEAD and GET requests, or a `LocalArchive` when it is to be fetched |
| `file://`, an absolute path | `LocalArchive` where it lies, under one of the allowed roots |
| `s3://`, `gs://`, `az://` | `LocalArchive`, copied to the scratch folder |

Nothing here looks further into the ZIP than its first bytes; that is `datasets.check`.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_queue.datasets.errors import DatasetError, DatasetErrorCode
from finetune_queue.datasets.limits import MAX_ARCHIVE_BYTES, TAKE_LESS
from finetune_queue.datasets.names import display_name
from finetune_queue.progress import OnProgress
from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.public_fetch.errors import FetchError, FetchErrorCode
from finetune_queue.storage import (
    BadUrlError,
    NoAccessError,
    ObjectMissingError,
    Place,
    PlaceMissingError,
    StorageError,
)
from finetune_queue.storage.urls import ObjectAddress, parse_url

_CHUNK = 1 << 20
_FETCH_CODES: dict[FetchErrorCode, DatasetErrorCode] = {
    "bad_url": "dataset_bad_address",
    "address_refused": "dataset_not_allowed",
    "not_found": "dataset_not_found",
    "too_large": "dataset_too_large",
    "unreachable": "dataset_unavailable",
    "timed_out": "dataset_unavailable",
    "unavailable": "dataset_unavailable",
    "incomplete": "dataset_unavailable",
}
_STORAGE_CODES: dict[type[StorageError], DatasetErrorCode] = {
    BadUrlError: "dataset_bad_address",
    NoAccessError: "dataset_unreadable",
    ObjectMissingError: "dataset_not_found",
    PlaceMissingError: "dataset_not_found",
}


@dataclass(frozen=True, slots=True)
class PublicArchive:
    """A ZIP that the provider reads by its URL; `size` in bytes is what its server says of it."""

    url: str
    size: int


@dataclass(frozen=True, slots=True)
class LocalArchive:
    """A ZIP on this machine."""

    path: Path
    size: int


def resolve_dataset(
    dataset: str,
    *,
    roots: Sequence[Path],
    buckets: Sequence[str],
    scratch: Path,
    policy: AddressPolicy,
    fetch_public: bool = False,
    on_progress: OnProgress | None = None,
) -> PublicArchive | LocalArchive:
    """Find what `dataset` names, and copy it to `scratch` (a folder of the caller, who removes it) where it must.

    `fetch_public` downloads an `https://` address instead of passing it on: to check it, or because the provider could
    not read it. `roots` are the folders that files may lie under, whatever links lead to them; `buckets` the buckets,
    or prefixes in them, that may be read with this machine's credentials.

    Raises:
        DatasetError: it cannot be used, with what to do about it.
    """
    scheme = dataset.partition("://")[0].lower() if "://" in dataset else ""
    if scheme in ("https", "http"):
        return _public(dataset, scratch, policy, on_progress) if fetch_public else _probed(dataset, policy)
    if (not scheme and not dataset.startswith("/")) or "\0" in dataset:
        raise DatasetError(
            "dataset_bad_address",
            f"{display_name(dataset)} is not an address that a worker can use.",
            "Give a URL (https://, s3://, gs://, az://, file://), or submit the folder or ZIP with the SDK or CLI.",
        )
    try:
        address = parse_url(dataset) if scheme else Path(dataset)
        if isinstance(address, ObjectAddress):
            _check_bucket(address, buckets)
            return _copied(address, scratch, on_progress)
    except StorageError as error:
        raise _from_storage(error) from error
    return _local(address, roots)


def _probed(url: str, policy: AddressPolicy) -> PublicArchive:
    # Imported late: `requests` is in the extra `worker`, and only https:// datasets need it.
    from finetune_queue.public_fetch import fetch

    try:
        size = fetch.probe(url, max_bytes=MAX_ARCHIVE_BYTES, policy=policy)
    except FetchError as error:
        raise _from_fetch(error) from error
    return PublicArchive(url=url, size=size)


def _public(url: str, scratch: Path, policy: AddressPolicy, on_progress: OnProgress | None) -> LocalArchive:
    from finetune_queue.public_fetch import fetch

    path = _scratch_file(scratch)
    try:
        size = fetch.fetch_to_file(url, path, max_bytes=MAX_ARCHIVE_BYTES, policy=policy, on_progress=on_progress)
    except FetchError as error:
        raise _from_fetch(error) from error
    except OSError as error:
        raise _no_scratch(error) from error
    return LocalArchive(path=path, size=size)


def _local(path: Path, roots: Sequence[Path]) -> LocalArchive:
    # Links are resolved first; and of a file outside of the roots not even the existence is told.
    found = _real(path)
    if not any(found.is_relative_to(_real(root)) for root in roots):
        raise DatasetError(
            "dataset_not_allowed",
            f"{display_name(str(path))} is not under a folder that datasets may be read from.",
            "Put it there (setting FINETUNE_DATASET_ROOTS), or submit it with the SDK or CLI. If you did, the workers "
            "have a different FINETUNE_STAGING_URL.",
        )
    try:
        if not found.is_file():
            what = "is a folder" if found.is_dir() else "does not exist"
            code: DatasetErrorCode = "dataset_bad_address" if found.is_dir() else "dataset_not_found"
            raise DatasetError(
                code, f"{display_name(str(path))} {what}.", "Give a ZIP file; the SDK and CLI pack folders."
            )
        size = found.stat().st_size
    except OSError as error:
        raise DatasetError(
            "dataset_unreadable",
            f"{display_name(str(path))} cannot be read: {error.strerror or error}.",
            "Check its permissions.",
            retryable=True,
        ) from error
    _check_size(display_name(str(path)), size)
    return LocalArchive(path=found, size=size)


def _check_bucket(address: ObjectAddress, buckets: Sequence[str]) -> None:
    url = f"{address.scheme}://{address.path}"
    prefixes = [prefix.rstrip("/") for prefix in buckets]
    if not any(url == prefix or url.startswith(f"{prefix}/") for prefix in prefixes):
        raise DatasetError(
            "dataset_not_allowed",
            f"{display_name(url)} is not in a bucket that datasets may be read from.",
            "Put it there (setting FINETUNE_DATASET_BUCKETS), or submit it with the SDK or CLI.",
        )


def _real(path: Path) -> Path:
    """Return the path without links; unlike `Path.resolve`, also for links that lead in a circle."""
    return Path(os.path.realpath(path))


def _copied(address: ObjectAddress, scratch: Path, on_progress: OnProgress | None) -> LocalArchive:
    url = f"{address.scheme}://{address.path}"
    if not address.key:
        raise DatasetError("dataset_bad_address", f"{url} is a bucket, not a file in it.", "Add the name of the ZIP.")
    place = Place(f"{address.scheme}://{address.bucket}")
    try:
        total = place.info(address.key).size
    except ValueError as error:
        raise DatasetError(
            "dataset_bad_address", f"{display_name(url)} has an odd name.", "Rename the object."
        ) from error
    _check_size(display_name(url), total)
    path = _scratch_file(scratch)
    try:
        _copy(place, address.key, path, total, on_progress)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return LocalArchive(path=path, size=total)


def _copy(place: Place, key: str, path: Path, total: int, on_progress: OnProgress | None) -> None:
    """Copy an object of `total` bytes to `path`.

    Raises:
        DatasetError: it has another size by now, or the copy cannot be kept.
        StorageError: it cannot be read.
    """
    done = 0
    try:
        with place.open_read(key) as source, path.open("wb") as target:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > total:
                    break
                target.write(chunk)
                if on_progress is not None:
                    on_progress(done, total)
    except OSError as error:
        raise _no_scratch(error) from error
    if done != total:
        name = display_name(place.url_of(key))
        raise DatasetError("dataset_unavailable", f"{name} changed while it was read.", "Try again.", retryable=True)


def _scratch_file(scratch: Path) -> Path:
    return scratch / f"dataset-{uuid.uuid4().hex}.zip"


def _check_size(name: str, size: int) -> None:
    if size >= MAX_ARCHIVE_BYTES:
        raise DatasetError(
            "dataset_too_large",
            f"{name} has {MAX_ARCHIVE_BYTES / 1_000_000:g} MB or more, which the API does not accept.",
            TAKE_LESS,
        )


def _no_scratch(error: OSError) -> DatasetError:
    return DatasetError(
        "dataset_unavailable",
        f"The dataset cannot be stored on this machine: {error.strerror or error}.",
        "Make space for temporary files.",
        retryable=True,
    )


def _from_fetch(error: FetchError) -> DatasetError:
    code = _FETCH_CODES.get(error.code, "dataset_not_public")
    return DatasetError(code, error.sentence, error.fix, retryable=error.retryable)


def _from_storage(error: StorageError) -> DatasetError:
    code = _STORAGE_CODES.get(type(error), "dataset_unavailable")
    return DatasetError(code, error.sentence, error.fix or "Check the address.", retryable=error.retryable)

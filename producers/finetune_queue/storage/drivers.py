"""What each store's fsspec driver has to be told, and what its exceptions mean. Nothing is loaded before it is used."""

import asyncio
import errno
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_queue.storage.errors import (
    DriverMissingError,
    NoAccessError,
    ObjectMissingError,
    PlaceMissingError,
    StorageError,
    UnavailableError,
)
from finetune_queue.storage.urls import ObjectAddress

_PART = 8 << 20
_S3_PART = 5 << 20  # the smallest that S3 takes: each has its time, and two share the line
_READ_AHEAD = 4 << 20

CALL_SECONDS = 25.0
ABORT_SECONDS = 2.0
"""How many seconds a call may take with all of its tries, and how many the call that aborts an upload after it.
Together less than a stage may be silent (FINETUNE_LEASE): a slower one would go on while another worker takes over its
job."""


def _bounded_s3(kind: Any) -> Any:
    """Return a class of S3 file systems that ends each call in time: aiohttp has no time-out while it waits for the
    `100 Continue` that each PUT begins with, nor while it sends. It also takes keys as they are: s3fs cuts off
    `?versionId=` and what follows."""

    class Bounded(kind):  # type: ignore[misc]  # the library has no types
        retries = 2

        def split_path(self, path: str) -> tuple[str, str, str | None]:
            before, mark, after = path.partition("?versionId=")
            bucket, key, version = super().split_path(before)
            return bucket, key + mark + after, version

        async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
            aborts = method == "abort_multipart_upload"
            async with asyncio.timeout(ABORT_SECONDS if aborts else CALL_SECONDS):
                return await super()._call_s3(method, *args, **kwargs)

    return Bounded


def _bounded_gs(kind: Any) -> Any:
    """Return a class of Google file systems that ends each call in time: gcsfs has a time-out for each of six tries."""

    class Bounded(kind):  # type: ignore[misc]  # the library has no types
        async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
            aborts = method == "DELETE" and path.startswith("http")  # an upload's own address; objects have a path
            async with asyncio.timeout(ABORT_SECONDS if aborts else CALL_SECONDS):
                return await super()._call(method, path, *args, **kwargs)

    return Bounded


def _bounded_az(kind: Any) -> Any:
    """Return a class of Azure file systems whose clients end each call in time. adlfs has no option for that, and a
    client by itself makes four tries of a minute, a quarter of one apart, and may send for ever. It also takes keys as
    they are: adlfs moves what follows `#` before what follows `?`, and cuts off `?versionid=`."""
    blob, spec = map(importlib.import_module, ("azure.storage.blob.aio", "adlfs.spec"))

    class Tries(blob.LinearRetry):  # type: ignore[misc, name-defined]  # not always installed
        async def send(self, request: Any) -> Any:
            async with asyncio.timeout(CALL_SECONDS):
                return await super().send(request)

    class Client(blob.BlobServiceClient):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **options: Any) -> None:
            options["retry_policy"] = Tries(backoff=2, retry_total=2, random_jitter_range=1)
            options |= {"connection_timeout": 10, "read_timeout": CALL_SECONDS, "max_single_put_size": _READ_AHEAD}
            super().__init__(*args, **options)

    class Plain(kind):  # type: ignore[misc]  # the library has no types
        @classmethod
        def _strip_protocol(cls, path: Any) -> Any:
            plain = isinstance(path, str) and "://" not in path  # as are all that this package passes on
            return path.lstrip("/") if plain else super()._strip_protocol(path)

        def split_path(self, path: str, *_args: Any, **_options: Any) -> tuple[str, str, str | None]:
            container, _, key = self._strip_protocol(path).partition("/")
            return container, key, None

    spec.AIOBlobServiceClient = Client  # type: ignore[attr-defined]
    return Plain


@dataclass(frozen=True, slots=True)
class Driver:
    """One scheme's library. `options`, `put` and `open` go to its file system, its `put_file` and its `open`."""

    module: str
    filesystem: str
    credentials: str
    """Where the library looks for credentials, as a part of a sentence."""
    endpoint: str
    """What tells the library where the store is, as a part of a sentence."""
    options: Mapping[str, Any]
    put: Mapping[str, Any]
    open: Mapping[str, Any] = field(default_factory=dict)
    mend: Callable[[Any], Any] = lambda kind: kind
    """Turns the library's class into the one that is used."""
    log_levels: Mapping[str, int] = field(default_factory=dict)
    """Levels for loggers that log each request, or at length what the library also raises."""


# The libraries' own limits would hold up to 500 MB of one upload in memory, and wait for minutes or for ever on a dead
# host.
DRIVERS = {
    "s3": Driver(
        module="s3fs",
        filesystem="S3FileSystem",
        credentials="AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, a profile, or the machine's role",
        endpoint="AWS_ENDPOINT_URL, for another store than Amazon's, or AWS_REGION",
        options={
            "config_kwargs": {"connect_timeout": 10, "read_timeout": CALL_SECONDS},
            "default_block_size": _READ_AHEAD,
        },
        put={"chunksize": _S3_PART, "max_concurrency": 2},
        mend=_bounded_s3,
    ),
    "gs": Driver(
        # Not the class that the package shows first: it asks for each bucket's kind by gRPC, with threads that do not
        # survive a fork.
        module="gcsfs.core",
        filesystem="GCSFileSystem",
        credentials="GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
        endpoint="STORAGE_EMULATOR_HOST, which is for an emulator alone",
        options={"requests_timeout": 120, "block_size": _READ_AHEAD},
        put={"chunksize": _PART},
        open={"cache_type": "readahead"},
        mend=_bounded_gs,
        log_levels={"gcsfs": logging.CRITICAL},
    ),
    "az": Driver(
        module="adlfs",
        filesystem="AzureBlobFileSystem",
        credentials="AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key, SAS token or identity",
        endpoint="the account's name or the endpoint in AZURE_STORAGE_CONNECTION_STRING",
        options={"blocksize": _READ_AHEAD, "max_concurrency": 4},
        put={"overwrite": True},
        mend=_bounded_az,
        log_levels={"azure": logging.ERROR},
    ),
}

_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs")
_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "AzureSigningError",
        "ClientAuthenticationError",
        "CredentialUnavailableError",
        "DefaultCredentialsError",
        "RefreshError",
    }
)
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_BUSY = frozenset({errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)})

_filesystems: dict[tuple[int, str], Any] = {}


def filesystem(scheme: str) -> Any:
    """Return the file system of this process for a scheme, made at first use.

    Shared, because adlfs keeps each one and its connections for good; by process, because connections and event loops
    do not survive a fork.

    Raises:
        DriverMissingError: the library is not installed.
        NoAccessError: there are no credentials that it could begin with.
    """
    key = (os.getpid(), scheme)
    if key in _filesystems:
        return _filesystems[key]
    # Two threads may each make one, and then both use the first. A lock could stay locked for ever in a forked child.
    return _filesystems.setdefault(key, _connect(scheme))


def _connect(scheme: str) -> Any:
    driver = DRIVERS[scheme]
    for name, level in driver.log_levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        kind = driver.mend(getattr(importlib.import_module(driver.module), driver.filesystem))
    except ImportError as error:
        raise DriverMissingError(
            f"{scheme}:// needs a library that is not installed.",
            f"Install it: pip install 'finetune-queue[{scheme}]'.",
        ) from error
    try:
        return kind(skip_instance_cache=True, use_listings_cache=False, **driver.options)
    except ValueError as error:
        raise NoAccessError(
            f"{scheme}:// cannot be used: credentials are missing or incomplete.",
            f"Give {driver.credentials}.",
        ) from error


def meaning(error: Exception, address: ObjectAddress, url: str, *, writing: bool) -> StorageError | None:
    """Return what an exception of fsspec or of the store's own library means, or None when it is neither's."""
    status, code = _answer(error)
    # A write fails with 404 only if the bucket is missing, and not every store has a code that says so.
    if code in _NO_BUCKET or (writing and isinstance(error, FileNotFoundError)):
        return PlaceMissingError(f"The bucket {address.bucket} does not exist.", "Create it, or correct its name.")
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"There is no object {url}.")
    if status == 403 or isinstance(error, PermissionError) or _refused_by_google(error):
        return NoAccessError(
            f"{url} cannot be used: {code or 'access denied'}.",
            "Check the credentials and their permissions on the bucket.",
        )
    if status == 401 or type(error).__name__ in _NO_CREDENTIALS:
        return NoAccessError(
            f"{url} cannot be used: there are no credentials, or they are not valid.",
            f"Give {DRIVERS[address.scheme].credentials}.",
        )
    if isinstance(error, OSError | TimeoutError) or type(error).__module__.split(".")[0] in _LIBRARIES:
        busy = isinstance(error, OSError) and error.errno in _BUSY
        why = code or ("it is busy" if busy else f"HTTP {status}" if status else type(error).__name__)
        answered = code or status or busy
        fix = "" if answered else f"Check the network from here to it, and {DRIVERS[address.scheme].endpoint}."
        return UnavailableError(f"The store of {url} cannot be used now: {why}.", fix)
    return None


def _answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """Return the HTTP status and the store's own code, such as `NoSuchBucket`, that lie behind an exception."""
    while error is not None:
        library = type(error).__module__.partition(".")[0]
        if library == "azure":
            code = getattr(error, "error_code", None)
            return getattr(error, "status_code", None), str(getattr(code, "value", code)) if code else None
        if library == "gcsfs":
            status = getattr(error, "code", None)
            return (int(status) if status else None), None
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), str(code) if code else None
        error = error.__cause__ or error.__context__
    return None, None


def _refused_by_google(error: BaseException) -> bool:
    """Tell whether it is Google's 403, for which gcsfs raises a plain OSError that begins with this word."""
    return type(error) is OSError and str(error).startswith("Forbidden")

"""The look at a dataset before its training starts: HEAD, GET, and is it a ZIP (Fast Flux API, section 1)."""

from __future__ import annotations

import asyncio
import struct
import zipfile
from pathlib import Path

import httpx

from segmind_sandbox.objects import ObjectStore
from segmind_sandbox.outgoing import UNREACHABLE, make_client

# What zipfile raises for a list of files that is damaged, or made by a version to come.
_NO_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError, IndexError)
MAX_BYTES = 100_000_000  # "under 100 MB", read strictly
_MAX_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(30, connect=5)


class DatasetError(Exception):
    """The dataset cannot be trained on; the text becomes the job's error_message."""


class DatasetReader:
    """Checks datasets. Those uploaded to the sandbox itself are read from its store, others over HTTP."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._issued: dict[str, str] = {}
        self._turns = asyncio.Semaphore(8)
        self._client = make_client(_TIMEOUT, max_redirects=_MAX_REDIRECTS)

    def issued(self, url: str, key: str) -> None:
        """Remember that this URL, handed out by presign, means this object."""
        self._issued[url] = key

    def forget(self) -> None:
        """Forget the URLs handed out."""
        self._issued.clear()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self, url: str, *, public_only: bool) -> None:
        """Read the dataset. ``public_only``: an upload that is not public cannot be read. Raises DatasetError."""
        async with self._turns:
            key = self._issued.get(url)
            if key is not None:
                await self._check_upload(key, public_only=public_only)
            else:
                await self._check_remote(url)

    async def _check_upload(self, key: str, *, public_only: bool) -> None:
        stored = self._objects.get(key)
        if stored is None:
            raise DatasetError("data_source_path: HEAD answered 404, nothing was uploaded there")
        if public_only and not stored.public:
            raise DatasetError("data_source_path: HEAD answered 403, the file is not public")
        _check_size(stored.size)
        await asyncio.to_thread(_check_zip, stored.path)

    async def _check_remote(self, url: str) -> None:
        path = self._objects.new_path()
        try:
            head = await self._client.head(url)
            length = _length(head, "HEAD")
            async with self._client.stream("GET", url) as reply:
                if _length(reply, "GET") != length:
                    raise DatasetError("data_source_path: HEAD and GET tell different Content-Lengths")
                with path.open("xb") as file:
                    async for chunk in reply.aiter_raw():
                        file.write(chunk)
            await asyncio.to_thread(_check_zip, path)
        except UNREACHABLE as error:
            raise DatasetError(f"data_source_path is unreachable: {type(error).__name__}") from error
        finally:
            path.unlink(missing_ok=True)


def _length(reply: httpx.Response, method: str) -> int:
    if reply.status_code != 200:
        raise DatasetError(f"data_source_path: {method} answered {reply.status_code}")
    length = reply.headers.get("content-length", "")
    if not length.isdecimal():
        raise DatasetError(f"data_source_path: {method} sent no Content-Length")
    _check_size(int(length))
    return int(length)


def _check_size(size: int) -> None:
    if size >= MAX_BYTES:
        raise DatasetError(f"the dataset has {size} bytes; it must be under 100 MB")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(not entry.is_dir() for entry in archive.infolist()):
                raise DatasetError("the dataset ZIP holds no files")
    except _NO_ZIP as error:
        raise DatasetError("the dataset is not a ZIP file") from error

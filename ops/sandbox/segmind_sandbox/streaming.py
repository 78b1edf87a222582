"""Sending an object's bytes: whole or one range (RFC 9110, sections 13 and 14), with the faults of a bad download."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from segmind_sandbox.connection import hang_up, is_closing
from segmind_sandbox.faults import AnyFault, Corrupted, IgnoreRange, Stall, Truncated
from segmind_sandbox.sandbox import Sandbox

_CHUNK = 256 << 10


class Source(Protocol):
    """Bytes that can be read by position."""

    def read(self, start: int, length: int) -> bytes:
        """Some bytes from ``start``, at least one and at most ``length``."""

    def close(self) -> None:
        """Release what the reading holds."""


@dataclass(frozen=True)
class Entity:
    """What is sent, and what its headers say of it."""

    size: int
    open: Callable[[], Source]
    etag: str
    modified: datetime
    headers: Sequence[tuple[str, str]]


class NotSatisfiableError(Exception):
    """The range begins beyond the object's end: 416."""


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a Range header asks for; None for one that a server ignores (several, malformed).

    Raises NotSatisfiableError.
    """
    unit, equals, spec = value.partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip().lower() != "bytes" or not equals or not dash:
        return None
    if not all(re.fullmatch("[0-9]{0,18}", part) for part in (first, last)) or not (first or last):
        return None
    if not first:
        if int(last) == 0 or size == 0:
            raise NotSatisfiableError
        return max(0, size - int(last)), size
    start = int(first)
    end = int(last) + 1 if last else size
    if last and end <= start:
        return None
    if start >= size:
        raise NotSatisfiableError
    return start, min(end, size)


def _range_holds(condition: str | None, entity: Entity) -> bool:
    """If-Range: the strong ETag or the date of the version that the client has a part of."""
    if condition is None or condition == entity.etag:
        return True
    try:
        return parsedate_to_datetime(condition) == entity.modified
    except (ValueError, OverflowError):
        return False


class EntityResponse(Response):
    """Answers GET or HEAD with an entity."""

    def __init__(
        self,
        sandbox: Sandbox,
        entity: Entity,
        request_headers: Mapping[str, str],
        faults: Sequence[AnyFault],
        not_satisfiable: Callable[[], Response],
    ) -> None:
        self._sandbox = sandbox
        self._entity = entity
        self._faults = faults
        self._refusal: Response | None = None
        size = entity.size
        self._start, self._end = 0, size
        status = 200
        wanted = request_headers.get("range")
        ignored = any(isinstance(fault, IgnoreRange) for fault in faults)
        if wanted is not None and not ignored and _range_holds(request_headers.get("if-range"), entity):
            try:
                span = parse_range(wanted, size)
            except NotSatisfiableError:
                self._refusal = not_satisfiable()
                self._refusal.headers["Content-Range"] = f"bytes */{size}"
                status = self._refusal.status_code
            else:
                if span is not None:
                    self._start, self._end = span
                    status = 206
        super().__init__(status_code=status)
        del self.headers["content-length"]
        if status == 206:
            self.headers["Content-Range"] = f"bytes {self._start}-{self._end - 1}/{size}"
        self.headers["Content-Length"] = str(self._end - self._start)
        self.headers["ETag"] = entity.etag
        self.headers["Last-Modified"] = format_datetime(entity.modified, usegmt=True)
        self.headers["Accept-Ranges"] = "bytes"
        for name, value in entity.headers:
            self.headers.append(name, value)

    @property
    def sends_entity(self) -> bool:
        """Whether it answers with the entity, and does not refuse the range."""
        return self._refusal is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply."""
        if self._refusal is not None:
            await self._refusal(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            with closing(self._entity.open()) as source:
                whole = await self._send_body(source, scope, send)
            if not whole:
                await hang_up(scope, receive, reset=False)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_body(self, source: Source, scope: Scope, send: Send) -> bool:
        """Send the bytes; False if the connection is to be closed before their end."""
        stalls = {self._place(fault.after_bytes): fault.seconds for fault in self._faults if isinstance(fault, Stall)}
        ends = [self._place(fault.after_bytes) for fault in self._faults if isinstance(fault, Truncated)]
        wrong = [self._place(fault.at_byte) for fault in self._faults if isinstance(fault, Corrupted)]
        end = min([self._end, *ends])
        position = self._start
        while position < end and not is_closing(scope):
            if position in stalls and not await self._sandbox.pause(stalls.pop(position)):
                return False
            stop = min([end, position + _CHUNK, *(place for place in stalls if place > position)])
            chunk = source.read(position, stop - position)
            for place in wrong:
                if 0 <= place - position < len(chunk):
                    chunk = _flipped(chunk, place - position)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)  # a fast reader must not keep the loop for itself
            position += len(chunk)
        return position >= self._end

    def _place(self, offset: int) -> int:
        """An offset into this reply as a position in the object, always before the reply's end."""
        return max(self._start, min(self._start + offset, self._end - 1))


def _flipped(chunk: bytes, index: int) -> bytes:
    return chunk[:index] + bytes([chunk[index] ^ 0xFF]) + chunk[index + 1 :]

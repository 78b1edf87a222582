"""The account's fine-tunes, read one by one from a reply of any length, in constant memory."""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

import ijson  # type: ignore[import-untyped]
import structlog
from ijson.common import ObjectBuilder  # type: ignore[import-untyped]
from pydantic import ValidationError

from finetune_worker.segmind.errors import SegmindError
from finetune_worker.segmind.models import FinetuneItem
from finetune_worker.segmind.replies import BoundedBody, TooLargeError
from finetune_worker.wire.failures import WIRE_ERRORS

MAX_LIST = 256 * 1024 * 1024
"""Bytes of a list: some 300,000 items like the documented one. The reply has no paging and grows with the account."""

MAX_ITEM = 1024 * 1024
"""Bytes of one item; the documented one has some 800."""

MAX_DEPTH = 50
"""How deep an item's values may be nested; the documented ones are two deep."""

READ_ERRORS = (*WIRE_ERRORS, ijson.JSONError, TooLargeError, ValueError, ArithmeticError)
"""What reading the list can raise before it is classified."""

_DIGITS = b"0123456789"
_LONG_NUMBER = re.compile(rb"[0-9]{1000}")

_log = structlog.get_logger(__name__)


class FinetuneListing(Iterator[FinetuneItem]):
    """Iterates over the list's items while they arrive; use it in a ``with`` block or to its end.

    An item that cannot be read is left out, logged and counted in ``skipped``. Whoever concludes from the list that
    something is *not* there must have read it to its end (``complete``) with nothing skipped.

    Raises:
        Unavailable: on iteration; the reply broke off or took too long. The items before it were whole.
        MalformedReply: on iteration; the reply is not a JSON array, or too long.
    """

    def __init__(
        self,
        body: BoundedBody,
        *,
        classify: Callable[[Exception], SegmindError],
        done: Callable[["FinetuneListing", SegmindError | None], None],
    ) -> None:
        self.items = 0
        self.skipped = 0
        self.complete = False
        self._classify = classify
        self._done = done
        self._closed = False
        self._raw: Iterator[Any] = _items(body)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FinetuneItem:
        while not self._closed:
            try:
                raw = next(self._raw)
            except StopIteration:
                self.complete = True
                self.close()
                break
            except READ_ERRORS as error:
                failure = self._classify(error)
            else:
                item = self._parse(raw)
                if item is not None:
                    return item
                continue
            self.close(failure)
            raise failure
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, failure: SegmindError | None = None) -> None:
        """Give the connection back. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._done(self, failure)

    def _parse(self, raw: Any) -> FinetuneItem | None:
        self.items += 1
        try:
            return FinetuneItem.model_validate(raw)
        except ValidationError as error:
            self.skipped += 1
            fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)})
            _log.warning("segmind_list_item_skipped", position=self.items - 1, fields=fields)
            return None


class _Source:
    """What ijson reads: the reply's body, with a limit on an item's bytes and a number's digits. ijson keeps an item in
    memory until it is whole; and at an integer that Python refuses to read (4,300 digits) its C code ends the process
    (3.6.0)."""

    def __init__(self, body: BoundedBody) -> None:
        self._body = body
        self._before = b""
        self.of_item = 0
        """Bytes read since the last item was whole."""

    def read(self, size: int) -> bytes:
        data = self._body.read(size)
        self.of_item += len(data)
        joined = self._before + data
        if self.of_item > MAX_ITEM or _LONG_NUMBER.search(joined):
            raise ijson.JSONError("the reply holds an endless item")
        self._before = joined[len(joined.rstrip(_DIGITS)) :]
        return data


def _items(body: BoundedBody) -> Iterator[Any]:
    """Yield the values of the top-level array; anything else at the top is an error, not an empty list.

    Built from ijson's plain events. Its own `items` keeps the path of each value, which takes quadratic time for a
    reply of nothing but opening brackets, and it reads no integer over 64 bits.
    """
    depth = 0
    builder = ObjectBuilder()
    source = _Source(body)
    for event, value in ijson.basic_parse(source):
        if depth == 0 and event != "start_array":
            raise ijson.JSONError("the reply is not a JSON array")
        opens = event in {"start_array", "start_map"}
        depth += opens - (event in {"end_array", "end_map"})
        if depth == 0 or (depth == 1 and opens):
            continue
        if depth > MAX_DEPTH:
            raise ijson.JSONError("the reply is nested too deeply")
        builder.event(event, float(value) if isinstance(value, Decimal) else value)
        if depth == 1:
            source.of_item = 0
            yield builder.value
            builder = ObjectBuilder()

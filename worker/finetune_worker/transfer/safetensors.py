"""Whether a file is a whole safetensors file, from its header alone: no framework, no tensor read.

The format: 8 bytes with the header's length, the header (JSON), the tensors' bytes. The header gives each tensor its
dtype, shape and place; the places must fill the rest of the file exactly, without overlap, hole or byte left over. So
a file that was cut is always found. Flipped bits are not: the format has no checksum, so the download's is kept.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from finetune_worker.transfer.errors import SafetensorsError

MAX_HEADER = 16_000_000
"""Bytes, some eighty times what the weights of a LoRA have. A hostile header takes 25 times as much memory to read: the
reference implementation allows 100 MB of one."""

MAX_TENSORS = 100_000
"""More than any model's file has, and few enough to check a hostile header in little memory."""

_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BF16": 16,
    "F16": 16,
    "I16": 16,
    "U16": 16,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**64 - 1
_SHOWN = 60


class _Place(NamedTuple):
    """A tensor's bytes, from the end of the header."""

    begin: int
    end: int


def verify_safetensors(path: Path) -> int:
    """Check the file at ``path``; returns how many tensors it holds.

    Raises:
        SafetensorsError: says what is wrong with it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        if len(start) < 8:
            raise _bad("truncated", f"the file has only {size} bytes")
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER:
            raise _bad("header_too_large", f"its header would have {length:,} bytes")
        if 8 + length > size:
            raise _bad("truncated", f"the file ends inside its header ({size:,} bytes)")
        header = file.read(length)
    places = _parse(header)
    if not places:
        raise _bad("no_tensors", "it holds no tensor")
    _check_places(places, size - 8 - length)
    return len(places)


def _parse(header: bytes) -> list[_Place]:
    if not header.startswith(b"{"):
        raise _bad("header_malformed", "its header does not start with a brace")
    try:
        found = json.loads(header.decode(), object_pairs_hook=_Reader().table, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise _bad("header_malformed", "its header is not UTF-8") from None
    except RecursionError:
        raise _bad("header_malformed", "its header is nested too deeply") from None
    except ValueError as error:
        raise _bad("header_malformed", f"its header is not JSON ({str(error)[:_SHOWN]})") from None
    if not isinstance(found, dict):
        raise _bad("header_malformed", "its header is one tensor without a name")
    metadata = found.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _bad("header_malformed", "its metadata is not a table of strings")
    for name, tensor in found.items():
        if not isinstance(tensor, _Place):
            raise _bad("header_malformed", f"{_short(name)} lacks its dtype, shape or place")
    return list(found.values())


class _Reader:
    """Reads the header's tables. A tensor's is checked and made small at once: a header may name very many."""

    def __init__(self) -> None:
        self._tensors = 0

    def table(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Place:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _bad("duplicate_name", "a name occurs twice in its header")
        if not found.keys() >= _FIELDS:
            return found
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise _bad("too_many_tensors", f"it names more than {MAX_TENSORS:,} tensors")
        return _tensor(found["dtype"], found["shape"], found["data_offsets"])


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _tensor(dtype: Any, shape: Any, place: Any) -> _Place:
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad("unknown_dtype", f"a tensor has an unknown dtype: {_short(dtype)}")
    if not _sizes(shape) or not _sizes(place) or len(place) != 2:
        raise _bad("header_malformed", "a tensor has a shape or place that is not a list of sizes")
    parameters = 1
    for length in shape:
        parameters *= length
        if parameters * _BITS[dtype] > _LARGEST:
            raise _bad("too_large", "a tensor is larger than any file")
    bits = parameters * _BITS[dtype]
    begin, end = place
    if bits % 8 or begin > end or (end - begin) * 8 != bits:
        raise _bad("size_mismatch", f"a tensor's shape {_short(shape)} of {dtype} does not fit its place {place}")
    return _Place(begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _check_places(found: list[_Place], room: int) -> None:
    places = sorted(found)
    if places[0].begin != 0:
        raise _bad("hole", "no tensor has its first bytes")
    for (_, end), (begin, _) in pairwise(places):
        if begin < end:
            raise _bad("overlap", f"two tensors share the byte {begin:,}")
        if begin > end:
            raise _bad("hole", f"no tensor has the bytes from {end:,} to {begin:,}")
    end = places[-1].end
    if end > room:
        raise _bad("truncated", f"{end - room:,} bytes are missing at its end")
    if end < room:
        raise _bad("trailing_bytes", f"{room - end:,} bytes follow its last tensor")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _bad(code: str, problem: str) -> SafetensorsError:
    return SafetensorsError(f"weights_{code}", f"The weights are not a whole safetensors file: {problem}.")

"""Weights files: real safetensors, made while they are read, so that their size costs neither memory nor disk.

The header names tensors as a FLUX LoRA does and tiles the file exactly. The body repeats one pseudo-random block that
depends on the model and its version. The block's length shares no factor but 2 with a power of two, so a reader
that loses, doubles or swaps a chunk of any usual size ends with other bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from crc32c import crc32c

from segmind_sandbox.checksum import combine, repeated

_PERIOD = 8190  # even, so that the small floats below stay aligned
_CHUNK = 1 << 20
_WIDTH = 3072  # of FLUX's attention layers
_MAX_TENSORS = 57 * 4 * 2  # blocks, projections, LoRA's two matrices
_HIGH_BYTES = bytes((0x3B, 0x3C, 0xBB, 0xBC)[value % 4] for value in range(256))  # BF16: a few thousandths


@dataclass(frozen=True, slots=True)
class Digests:
    """What the storage says of an object: hexadecimal MD5 and the CRC-32C."""

    md5: str
    crc32c: int

    @property
    def etag(self) -> str:
        """The strong ETag of a simple object."""
        return f'"{self.md5}"'

    @property
    def goog_hashes(self) -> tuple[str, str]:
        """The two values of x-goog-hash."""
        crc = base64.b64encode(self.crc32c.to_bytes(4, "big")).decode()
        return f"crc32c={crc}", f"md5={base64.b64encode(bytes.fromhex(self.md5)).decode()}"


class Weights:
    """One weights file of exactly ``size`` bytes (a multiple of 8, at least 4096)."""

    def __init__(self, model_id: str, version: int, size: int) -> None:
        self.size = size
        self._head = _head(model_id, size)
        self._block = _block(f"{model_id}:{version}")
        self._tape = self._block * (_CHUNK // _PERIOD + 2)

    def read(self, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start``, at most 1 MiB and fewer at the file's end."""
        length = min(length, _CHUNK, self.size - start)
        if start < len(self._head):
            return self._head[start : start + length]
        offset = (start - len(self._head)) % _PERIOD
        return self._tape[offset : offset + length]

    def close(self) -> None:
        """Nothing to release: the bytes are made from little."""

    def digests(self) -> Digests:
        """Hash the file: about 2 s for each GB, so not in the event loop."""
        md5 = hashlib.md5(usedforsecurity=False)
        for chunk in self._chunks():
            md5.update(chunk)
        repeats, rest = divmod(self.size - len(self._head), _PERIOD)
        body = combine(repeated(crc32c(self._block), _PERIOD, repeats), crc32c(self._block[:rest]), rest)
        return Digests(md5.hexdigest(), combine(crc32c(self._head), body, self.size - len(self._head)))

    def _chunks(self) -> Iterator[bytes]:
        position = 0
        while position < self.size:
            chunk = self.read(position, _CHUNK)
            yield chunk
            position += len(chunk)


@lru_cache(maxsize=16)
def weights(model_id: str, version: int, size: int) -> Weights:
    """The weights of a model; those read last are kept ready (1 MiB each)."""
    return Weights(model_id, version, size)


def _block(seed: str) -> bytes:
    block = bytearray(random.Random(seed).randbytes(_PERIOD))  # noqa: S311 - test data, no secret
    block[1::2] = block[1::2].translate(_HIGH_BYTES)
    return bytes(block)


def _tensor_names() -> Iterator[str]:
    for layer in range(57):
        kind, number = ("transformer_blocks", layer) if layer < 19 else ("single_transformer_blocks", layer - 19)
        for projection in ("to_q", "to_k", "to_v", "to_out.0" if layer < 19 else "proj_out"):
            for matrix in ("lora_A", "lora_B"):
                yield f"transformer.{kind}.{number}.attn.{projection}.{matrix}.weight"


def _tensors(body: int, rank: int) -> dict[str, object]:
    """Tensors whose ranges tile ``body`` bytes; only the last may be smaller than the others."""
    tensors: dict[str, object] = {}
    start = 0
    for name in _tensor_names():
        end = min(body, start + rank * _WIDTH * 2)
        shape = [rank, _WIDTH] if "lora_A" in name else [_WIDTH, rank]
        if end - start < rank * _WIDTH * 2:
            shape = [1, (end - start) // 2]
        tensors[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        if end == body:
            break
        start = end
    return tensors


def _head(model_id: str, size: int) -> bytes:
    """The length field and the header, padded with spaces as the format allows."""
    rank = 4
    while size > _MAX_TENSORS * rank * _WIDTH * 2:
        rank *= 2
    metadata = {"__metadata__": {"format": "pt", "ss_base_model_version": "flux1", "ss_output_name": model_id}}
    draft = json.dumps({**metadata, **_tensors(size, rank)})
    room = -(-(len(draft) + 16) // 8) * 8  # the true ranges never have more digits, the last shape has a few at most
    header = json.dumps({**metadata, **_tensors(size - 8 - room, rank)}).encode()
    return room.to_bytes(8, "little") + header.ljust(room)

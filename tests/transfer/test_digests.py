"""Checksums against known values, and which of a storage's headers are believed."""

import base64
import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_worker.transfer import crc32c
from finetune_worker.transfer.digests import Expected, Hashes, etag_md5, expected

MD5 = "0123456789abcdef0123456789abcdef"
B64 = base64.b64encode(bytes.fromhex(MD5)).decode()


def bytewise(data: bytes) -> str:
    """The definition: one bit after the other."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return f"{register ^ 0xFFFFFFFF:08x}"


def crc_of(*pieces: bytes) -> str:
    crc = crc32c.Crc32c()
    for piece in pieces:
        crc.update(piece)
    return crc.hexdigest()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", "00000000"),
        (b"123456789", "e3069283"),
        (bytes(32), "8a9136aa"),  # this and the next three: RFC 3720, B.4
        (b"\xff" * 32, "62a8ab43"),
        (bytes(range(32)), "46dd794e"),
        (bytes(reversed(range(32))), "113fdb5c"),
    ],
)
def test_known_values_of_crc32c(data: bytes, value: str) -> None:
    assert crc_of(data) == value


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_crc32c_of_pieces_is_that_of_the_whole(data: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert crc_of(*(data[start:end] for start, end in pairwise(bounds))) == bytewise(data)


def test_blocks_give_the_same_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hashlib.shake_128(b"seed").digest(2 * crc32c.BLOCK + 999)
    fast = crc_of(data)
    assert crc_of(data[: crc32c.BLOCK - 1], data[crc32c.BLOCK - 1 :]) == fast
    monkeypatch.setattr(crc32c, "BLOCK", len(data) + 1)
    assert crc_of(data) == fast


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, Expected()),
        ({"x-goog-hash": f"crc32c=n03x6A==,md5={B64}"}, Expected(MD5, "9f4df1e8")),
        ({"x-goog-hash": f"md5={B64}, crc32c=n03x6A=="}, Expected(MD5, "9f4df1e8")),
        ({"x-goog-hash": "crc32c=n03x6A=="}, Expected(None, "9f4df1e8")),
        ({"x-goog-hash": "crc32c=n03x6A==", "ETag": f'"{MD5}"'}, Expected(None, "9f4df1e8")),
        ({"x-goog-hash": "crc32c=???,md5=short"}, Expected()),
        ({"x-goog-hash": "nonsense"}, Expected()),
        ({"ETag": f'"{MD5}"'}, Expected()),
        ({"ETag": f'"{MD5}"', "x-amz-request-id": "1"}, Expected(MD5)),
        ({"ETag": f'"{MD5}-2"', "x-amz-request-id": "1"}, Expected()),
        ({"ETag": f'W/"{MD5}"', "x-amz-request-id": "1"}, Expected()),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, Expected()),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"}, Expected(MD5)),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, Expected()),
    ],
)
def test_which_checksums_are_believed(headers: dict[str, str], found: Expected) -> None:
    assert expected(headers) == found


def test_an_unquoted_etag_is_read_too() -> None:
    assert etag_md5({"ETag": MD5}) == MD5


def test_the_digests_of_bytes_and_what_they_are_compared_with() -> None:
    data = b"weights"
    md5, crc = hashlib.md5(data).hexdigest(), bytewise(data)
    cases = [
        (Expected(), None, None),
        (Expected(md5=md5), "md5", None),
        (Expected(md5=MD5), "md5", "md5"),
        (Expected(md5=md5, crc32c="00000000"), "md5", None),  # the slow one is not computed when there is an md5
        (Expected(crc32c=crc), "crc32c", None),
        (Expected(crc32c="00000000"), "crc32c", "crc32c"),
    ]
    for expect, checked, wrong in cases:
        hashes = Hashes(expect)
        hashes.update(data)
        assert (hashes.checked, hashes.mismatch()) == (checked, wrong)
        assert (hashes.md5, hashes.sha256) == (md5, hashlib.sha256(data).hexdigest())

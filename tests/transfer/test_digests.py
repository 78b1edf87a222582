"""Which of a storage's checksums are believed, and that they are compared with all bytes."""

import base64
import hashlib
import threading
from contextlib import closing

import pytest
from crc32c import CRC32CHash
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_worker.transfer import digests
from finetune_worker.transfer.beside import Beside
from finetune_worker.transfer.digests import Checksum, Hashing, checksum_of, etag_md5

MD5 = "0123456789abcdef0123456789abcdef"
B64 = base64.b64encode(bytes.fromhex(MD5)).decode()
CRC = Checksum("crc32c", "9f4df1e8")
BY_MD5 = Checksum("md5", MD5)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({"x-goog-hash": f"crc32c=n03x6A==,md5={B64}"}, CRC),
        ({"x-goog-hash": f"md5={B64}, crc32c=n03x6A=="}, CRC),
        ({"x-goog-hash": "crc32c=n03x6A=="}, CRC),
        ({"x-goog-hash": f"md5={B64}"}, BY_MD5),
        ({"x-goog-hash": "crc32c=n03x6A==", "ETag": f'"{MD5}"'}, CRC),
        ({"x-goog-hash": "crc32c=???,md5=short"}, None),
        ({"x-goog-hash": f"crc32c=n03x6A=,md5={B64}"}, BY_MD5),
        ({"x-goog-hash": "nonsense"}, None),
        ({"ETag": f'"{MD5}"'}, None),
        ({"ETag": f'"{MD5}"', "x-amz-request-id": "1"}, BY_MD5),
        ({"ETag": f'"{MD5}-2"', "x-amz-request-id": "1"}, None),
        ({"ETag": f'W/"{MD5}"', "x-amz-request-id": "1"}, None),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, None),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"}, BY_MD5),
        ({"ETag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, None),
    ],
)
def test_which_checksum_is_believed(headers: dict[str, str], found: Checksum | None) -> None:
    assert checksum_of(headers) == found


def test_an_unquoted_etag_is_read_too() -> None:
    assert etag_md5({"ETag": MD5}) == MD5


@pytest.mark.parametrize(
    ("algorithm", "data", "value"),
    [
        ("crc32c", b"", "00000000"),
        ("crc32c", b"123456789", "e3069283"),
        ("crc32c", bytes(32), "8a9136aa"),  # this and the next: RFC 3720, B.4
        ("crc32c", bytes(range(32)), "46dd794e"),
        ("md5", b"123456789", "25f9e794323b453885f5181f1b624d0b"),
    ],
)
def test_known_values(algorithm: str, data: bytes, value: str) -> None:
    digest = Checksum(algorithm, value).start()  # type: ignore[arg-type]
    digest.update(data)
    assert digest.hexdigest() == value


@settings(max_examples=20)
@given(st.lists(st.integers(0, 100_000), max_size=6))
def test_digests_of_blocks_of_any_size_are_those_of_the_whole(sizes: list[int]) -> None:
    blocks = [hashlib.shake_128(str(number).encode()).digest(size) for number, size in enumerate(sizes)]
    found = (hashlib.sha256(), hashlib.md5())
    hashing = Hashing(*found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_WORTH_A_THREAD", 100_000)
        patch.setattr(digests, "_HANDED_OVER", 150_000)
        for block in blocks:
            hashing.update(block)
    hashing.wait()
    hashing.close()
    whole = b"".join(blocks)
    assert [each.digest() for each in found] == [hashlib.sha256(whole).digest(), hashlib.md5(whole).digest()]


def test_only_a_large_transfer_starts_a_thread() -> None:
    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("checksum")]

    hashing = Hashing(hashlib.sha256())
    hashing.update(bytes(4 << 20))
    assert threads() == []
    hashing.update(bytes(1 << 20))
    assert len(threads()) == 1
    hashing.close()
    assert threads() == []


def test_digests_that_take_long_are_computed_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is done with its bytes only when the other has got them, too."""
    monkeypatch.setattr(digests, "_WORTH_A_THREAD", 0)
    both, fed = threading.Barrier(2), []

    class Slow:
        def update(self, data: bytes | memoryview) -> None:
            both.wait(10)
            fed.append(len(data))

        def hexdigest(self) -> str:
            return ""

    with closing(Hashing(Slow(), Slow())) as hashing:
        hashing.update(bytes(600_000))
        hashing.update(bytes(500_000))
        hashing.wait()
    assert sorted(fed) == [500_000, 500_000, 600_000, 600_000]


def test_a_crc_gets_no_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_WORTH_A_THREAD", 0)
    with closing(Hashing(hashlib.sha256(), CRC32CHash())) as hashing:
        hashing.update(bytes(1 << 20))
        assert [each.name for each in threading.enumerate() if each.name.startswith("checksum")] == ["checksum_0"]


def test_one_call_at_a_time_goes_on_beside_and_its_error_comes_back() -> None:
    beside, go, done = Beside("test"), threading.Event(), []

    def work(number: int) -> None:
        assert go.wait(10)
        done.append(number)
        if number == 2:
            raise OSError("the disk")

    beside.start(work, 1)
    assert beside.busy
    assert done == []
    go.set()
    beside.start(work, 2)
    assert done[0] == 1
    with pytest.raises(OSError, match="the disk"):
        beside.start(work, 3)
    beside.close()
    assert done == [1, 2]

"""Weights files and how they are served: real safetensors, strong ETags, hashes, ranges."""

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import requests
import safetensors
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.calls import FINETUNE, TIMEOUT, Api
from segmind_sandbox.checksum import combine, repeated
from segmind_sandbox.settings import SandboxSettings
from segmind_sandbox.streaming import NotSatisfiableError, parse_range
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from segmind_sandbox.weights import Digests, Weights

MIB = 1 << 20


def whole(weights: Weights) -> bytes:
    """The file's bytes."""
    data = bytearray()
    while len(data) < weights.size:
        data += weights.read(len(data), MIB)
    return bytes(data)


@pytest.fixture
def url(api: Api) -> str:
    """Weights that can be downloaded."""
    return str(api.trained()["cloud_storage_url"])


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 40))
def test_crc32c_of_pieces(first: bytes, second: bytes, times: int) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)
    assert repeated(crc32c(first), len(first), times) == crc32c(first * times)


@settings(max_examples=30)
@given(st.integers(512, 500_000).map(lambda eighths: eighths * 8))
def test_weights_are_safetensors_of_the_size_asked_for(size: int) -> None:
    data = whole(Weights("model", 0, size))
    assert len(data) == size
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    end = 0
    for name, tensor in header.items():
        assert "lora_" in name
        assert tensor["data_offsets"][0] == end
        end = tensor["data_offsets"][1]
    assert 8 + length + end == size
    assert len(safetensors.deserialize(data)) == len(header)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("size", [300 * MIB, 2 << 30])
def test_the_header_of_large_weights_tiles_them_too(size: int) -> None:
    weights = Weights("model", 0, size)
    length = int.from_bytes(weights.read(0, 8), "little")
    header = json.loads(weights.read(8, length))
    assert 8 + length + max(tensor.get("data_offsets", [0, 0])[1] for tensor in header.values()) == size


def test_weights_are_those_of_their_job_and_version() -> None:
    same = [whole(Weights("model", 0, 65536)) for _ in range(2)]
    assert same[0] == same[1]
    assert len({same[0], whole(Weights("model", 1, 65536)), whole(Weights("other", 0, 65536))}) == 3


@pytest.mark.parametrize("shift", [1 << power for power in range(10, 21)])
def test_a_chunk_in_the_wrong_place_is_another_chunk(shift: int) -> None:
    weights = Weights("model", 0, 4 * MIB)
    start = MIB
    assert weights.read(start, 1024) != weights.read(start + shift, 1024)


@settings(max_examples=50)
@given(st.integers(0, 3 * MIB - 1), st.integers(1, 2 * MIB))
def test_weights_read_anywhere_are_the_same_bytes(start: int, length: int) -> None:
    weights = Weights("model", 0, 3 * MIB)
    piece = weights.read(start, length)
    assert 0 < len(piece) <= length
    middle = start + len(piece) // 2
    assert weights.read(middle, start + len(piece) - middle) == piece[len(piece) // 2 :]


def test_the_hashes_are_those_of_the_bytes(url: str) -> None:
    reply = requests.get(url, timeout=TIMEOUT)
    md5 = hashlib.md5(reply.content)
    crc = base64.b64encode(crc32c(reply.content).to_bytes(4, "big")).decode()
    assert reply.headers["ETag"] == f'"{md5.hexdigest()}"'
    assert reply.headers["x-goog-hash"] == f"crc32c={crc}, md5={base64.b64encode(md5.digest()).decode()}"
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert "Content-Encoding" not in reply.headers
    head = requests.head(url, timeout=TIMEOUT)
    for name in ("ETag", "x-goog-hash", "Content-Length", "Last-Modified"):
        assert head.headers[name] == reply.headers[name]
    assert head.content == b""


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=100-199", (100, 200)),
        ("bytes=65000-", (65000, 65536)),
        ("bytes=-36", (65500, 65536)),
        ("bytes=65535-99999999", (65535, 65536)),
    ],
)
def test_a_range(url: str, asked: str, span: tuple[int, int]) -> None:
    data = requests.get(url, timeout=TIMEOUT).content
    reply = requests.get(url, headers={"Range": asked}, timeout=TIMEOUT)
    start, end = span
    assert reply.status_code == 206
    assert reply.content == data[start:end]
    assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/65536"


@pytest.mark.parametrize("asked", ["bytes=65536-", "bytes=-0"])
def test_a_range_beyond_the_end(url: str, asked: str) -> None:
    reply = requests.get(url, headers={"Range": asked}, timeout=TIMEOUT)
    assert (reply.status_code, reply.headers["Content-Range"]) == (416, "bytes */65536")
    assert "<Code>InvalidRange</Code>" in reply.text


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=5-1",
        "bytes=a-b",
        "bytes=-",
        "bytes=0-1,5-6",
        "items=0-1",
        "bytes 0-1",
        "",
        pytest.param(f"bytes=0-{'9' * 5000}", id="more digits than Python reads"),
    ],
)
def test_a_range_that_is_ignored(url: str, asked: str) -> None:
    assert requests.get(url, headers={"Range": asked}, timeout=TIMEOUT).status_code == 200


@given(st.text(max_size=30), st.integers(0, 100))
def test_any_range_header_gives_a_sound_range_or_none(value: str, size: int) -> None:
    for text in (value, f"bytes={value}"):
        try:
            span = parse_range(text, size)
        except NotSatisfiableError:
            continue
        assert span is None or 0 <= span[0] < span[1] <= size


def test_if_range(url: str) -> None:
    first = requests.get(url, timeout=TIMEOUT)

    def resumed(condition: str) -> int:
        return requests.get(url, headers={"Range": "bytes=100-", "If-Range": condition}, timeout=TIMEOUT).status_code

    assert resumed(first.headers["ETag"]) == 206
    assert resumed(first.headers["Last-Modified"]) == 206
    assert resumed('"another"') == 200
    assert resumed(f"W/{first.headers['ETag']}") == 200
    assert resumed("Thu, 01 Jan 1970 00:00:00 GMT") == 200
    assert resumed("Thu, 01 Jan 99999999999 00:00:00 GMT") == 200


def test_replaced_weights_are_another_version(api: Api, sandbox: LiveSandbox) -> None:
    job = api.trained()
    url = job["cloud_storage_url"]
    before = requests.get(url, timeout=TIMEOUT)
    sandbox.control.change_training(job["finetune_id"], replace_weights=True)
    headers = {"Range": "bytes=100-", "If-Range": before.headers["ETag"]}
    after = requests.get(url, headers=headers, timeout=TIMEOUT)
    assert after.status_code == 200
    assert after.headers["ETag"] == f'"{hashlib.md5(after.content).hexdigest()}"' != before.headers["ETag"]


def test_weights_that_are_replaced_while_they_are_hashed_have_the_hash_of_their_bytes(
    api: Api, sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.trained()
    hashing, replaced = Event(), Event()
    digests = Weights.digests

    def slow(weights: Weights) -> Digests:
        hashing.set()
        assert replaced.wait(TIMEOUT)
        return digests(weights)

    monkeypatch.setattr(Weights, "digests", slow)
    with ThreadPoolExecutor(1) as other:
        reply = other.submit(requests.get, job["cloud_storage_url"], timeout=TIMEOUT)
        assert hashing.wait(TIMEOUT)
        sandbox.control.change_training(job["finetune_id"], replace_weights=True)
        replaced.set()
        found = reply.result()
    assert found.headers["ETag"] == f'"{hashlib.md5(found.content).hexdigest()}"'


def test_weights_are_there_only_once_they_are_trained(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="training", kind="hold")
    finetune_id = api.submit()
    url = sandbox.control.trainings()[0]["weights_url"]
    assert requests.get(url, timeout=TIMEOUT).status_code == 404
    sandbox.control.change_training(finetune_id, finish=True)
    assert requests.get(url, timeout=TIMEOUT).status_code == 200


def test_private_weights_need_a_link_that_ends(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(private_weights=True)
    url = api.trained()["cloud_storage_url"]
    assert requests.get(url, timeout=TIMEOUT).status_code == 403

    reply = api.call("GET", f"{FINETUNE}/file/download", data={"cloud_storage_url": url})
    assert reply.headers["Content-Type"].startswith("text/plain")
    assert requests.get(reply.text, timeout=TIMEOUT).status_code == 200
    assert requests.get(reply.text, headers={"Range": "bytes=5-9"}, timeout=TIMEOUT).status_code == 206
    assert requests.get(reply.text + "0", timeout=TIMEOUT).status_code == 403

    unknown = api.call("GET", f"{FINETUNE}/file/download", data={"cloud_storage_url": url + "x"})
    assert unknown.status_code == 404


def test_a_public_base_is_used_for_all_urls() -> None:

    settings_ = SandboxSettings(public_url="http://storage.example:8080/", training_seconds=0)
    with run_sandbox(settings_) as sandbox:
        api = Api(sandbox)
        assert api.presign()["presigned_url"].startswith("http://storage.example:8080/storage/finetune-pipeline/")
        api.close()

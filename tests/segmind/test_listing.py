"""The list: any length in constant memory, nothing lost in silence."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import MalformedReply, Unavailable
from finetune_worker.segmind.listing import FinetuneListing
from finetune_worker.segmind.models import FinetuneItem
from wire.rawserver import RawServer, Wire

SAMPLE: dict[str, Any] = {
    "id": "uuid",
    "data_source_path": "https://your-bucket.s3.amazonaws.com/path/to/dataset.zip",
    "name": "fine-tune-job-name",
    "status": "AVAILABLE",
    "error_message": None,
    "segmind_model_path": None,
    "advance_parameters": {"steps": 10, "learning_rate": 0.0001, "prompt": "sample prompt", "theme": "sample-theme"},
    "segmind_public_model": False,
    "train_type": "LORA",
    "source_type": "AWS_S3",
    "base_model": "BASE_MODEL_NAME",
    "theme": "sample-theme",
    "cloud_storage_url": None,
    "finetune_id": "uuid",
    "model_information": {},
}


def serving(body: bytes, *, announced: int | None = None, headers: str = "") -> Callable[[Wire], None]:
    def talk(wire: Wire) -> None:
        wire.hear()
        length = len(body) if announced is None else announced
        wire.say(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body)

    return talk


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def listing(server: RawServer) -> FinetuneListing:
    return SegmindClient(server.url, SecretStr("SG_key_1"), read_timeout=5, call_timeout=30).list_finetunes()


@pytest.mark.parametrize(
    "number",
    [b"9" * 5_000, b"-" + b"9" * 100_000, b"1e99999999999999999999", b"1." + b"0" * 5_000],
    ids=lambda text: text[:9],
)
def test_a_number_that_nobody_can_read_ends_the_list_and_not_the_process(number: bytes) -> None:
    """Over more than 4,300 digits ijson's C code ended it, by a signal."""
    body = json.dumps([SAMPLE]).encode()[:-1] + b"," + number + b"]"
    with RawServer(serving(body)) as server, listing(server) as found, pytest.raises(MalformedReply):
        list(found)
    assert not found.complete


def test_a_long_number_is_found_across_pieces_of_the_reply() -> None:
    def talk(wire: Wire) -> None:
        wire.hear()
        wire.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"["))
        for _ in range(50):
            wire.say(chunk(b"9" * 100))
        wire.say(chunk(b"]") + chunk(b""))

    with RawServer(talk) as server, listing(server) as found, pytest.raises(MalformedReply):
        list(found)


@pytest.mark.parametrize(
    "inside", [b'"' + b"x" * 40_000_000 + b'"', b"[" + b"[]," * 10_000_000 + b"1]", b" " * 40_000_000]
)
def test_an_item_without_end_does_not_fill_the_memory(inside: bytes) -> None:
    packed = gzip.compress(b'[{"finetune_id": "a", "name": ' + inside + b"}]", 1)
    del inside
    with RawServer(serving(packed, headers="Content-Encoding: gzip\r\n")) as server, listing(server) as found:
        tracemalloc.start()
        try:
            with pytest.raises(MalformedReply):
                list(found)
            assert tracemalloc.get_traced_memory()[1] < 40_000_000
        finally:
            tracemalloc.stop()


def test_an_item_as_documented() -> None:
    with RawServer(serving(json.dumps([SAMPLE]).encode())) as server, listing(server) as found:
        (item,) = found
    assert (item.finetune_id, item.status, item.cloud_storage_url, item.error_message) == (
        "uuid",
        "AVAILABLE",
        None,
        None,
    )
    assert item.available
    assert (found.items, found.skipped, found.complete) == (1, 0, True)


def test_an_empty_account() -> None:
    with RawServer(serving(b" \n[ ]\n")) as server, listing(server) as found:
        assert list(found) == []
        assert found.complete


def test_items_arrive_while_the_reply_is_still_coming() -> None:
    more: list[bool] = []

    def talk(wire: Wire) -> None:
        wire.hear()
        wire.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.say(chunk(b'[{"finetune_id": "first"},'))
        while not more:
            wire.sock.settimeout(0.01)
            try:
                wire.sock.recv(1)
            except TimeoutError:
                continue
        wire.say(chunk(b' {"finetune_id": "other"}]') + chunk(b""))

    with RawServer(talk) as server, listing(server) as found:
        assert next(found).finetune_id == "first"
        more.append(True)
        assert next(found).finetune_id == "other"
        assert list(found) == []
        assert found.complete


def test_a_compressed_list() -> None:
    body = gzip.compress(json.dumps([SAMPLE] * 500).encode())
    with RawServer(serving(body, headers="Content-Encoding: gzip\r\n")) as server, listing(server) as found:
        assert len(list(found)) == 500


def test_ten_thousand_items_need_no_more_memory_than_a_hundred() -> None:
    def peak(count: int) -> int:
        one = json.dumps(SAMPLE).encode()

        def talk(wire: Wire) -> None:
            wire.hear()
            wire.say(f"HTTP/1.1 200 OK\r\nContent-Length: {2 + count * (len(one) + 1) - 1}\r\n\r\n[".encode())
            for number in range(count):
                wire.say(one + (b"," if number < count - 1 else b"]"))

        with RawServer(talk) as server, listing(server) as found:
            tracemalloc.start()
            try:
                assert sum(1 for _ in found) == count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    small = peak(100)
    assert peak(10_000) < small + 2 * 1024 * 1024  # the whole list has more than that


ITEMS = b'[{"finetune_id": "a"}, {"finetune_id": "b"}, {"finetune_id": "c"}]'


@pytest.mark.parametrize("cut", range(len(ITEMS)))
def test_a_list_that_breaks_off_gives_what_was_whole_and_an_error(cut: int) -> None:
    with RawServer(serving(ITEMS[:cut], announced=len(ITEMS))) as server, listing(server) as found:
        items: list[FinetuneItem] = []
        with pytest.raises(Unavailable) as caught:
            items.extend(found)
    assert caught.value.code == "connection_lost"
    assert [item.finetune_id for item in items] == ["a", "b", "c"][: ITEMS[:cut].count(b"}")]
    assert not found.complete
    assert list(found) == []


@pytest.mark.parametrize("cut", [0, 1, 22, 40, len(ITEMS) - 1])
def test_a_list_that_ends_too_early_for_its_brackets_is_malformed(cut: int) -> None:
    """A proxy that closes a reply without a length in the middle: only the JSON tells."""
    with RawServer(serving(ITEMS[:cut])) as server, listing(server) as found:
        items: list[FinetuneItem] = []
        with pytest.raises(MalformedReply):
            items.extend(found)
    assert not found.complete
    assert len(items) == ITEMS[:cut].count(b"}")


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"error": "busy"}', b'{"item": [{"finetune_id": "a"}]}', b"null", b'"x"', b"12", b"<html></html>",
     b"[1,]", b"[}", b"[] []", b'["\xff"]', b"[" * 200_000,
     b'[{"finetune_id": "a", "x": ' + b"[" * 60 + b"]" * 60 + b"}]"],
    ids=lambda body: body[:20].decode("latin-1"),
)  # fmt: skip
def test_what_is_no_list_is_not_an_empty_one(body: bytes) -> None:
    with RawServer(serving(body)) as server, listing(server) as found, pytest.raises(MalformedReply):
        list(found)
    assert not found.complete


def test_an_item_that_cannot_be_read_is_left_out_and_counted() -> None:
    body = json.dumps([{"finetune_id": "a"}, 7, None, [], {"finetune_id": ""}, {"finetune_id": "b", "status": {"x": 1}},
                       {"request_id": 12, "status": None, "error_message": {"why": "x"}}]).encode()  # fmt: skip
    with capture_logs() as logs, RawServer(serving(body)) as server, listing(server) as found:
        items = list(found)
    assert [item.finetune_id for item in items] == ["a", "12"]
    assert (items[1].status, items[1].error_message) == ("", '{"why": "x"}')
    assert (found.items, found.skipped, found.complete) == (7, 5, True)
    skipped = [entry for entry in logs if entry["event"] == "segmind_list_item_skipped"]
    assert [(entry["position"], entry["fields"]) for entry in skipped] == [
        (1, [""]),
        (2, [""]),
        (3, [""]),
        (4, ["finetune_id"]),
        (5, ["status"]),
    ]


def test_the_items_before_a_fault_in_the_same_packet_are_not_lost() -> None:
    with RawServer(serving(b'[{"finetune_id": "a"}, {"finetune_id": "b"}, oops')) as server, listing(server) as found:
        items: list[FinetuneItem] = []
        with pytest.raises(MalformedReply):
            items.extend(found)
    assert [item.finetune_id for item in items] == ["a", "b"]


def test_numbers_of_any_size_do_not_hide_an_item() -> None:
    body = b'[{"finetune_id": "a", "n": 123456789012345678901234567890, "f": 1e999, "g": -0.5}]'
    with RawServer(serving(body)) as server, listing(server) as found:
        assert [item.finetune_id for item in found] == ["a"]


def test_a_listing_that_is_left_early_gives_its_connection_back() -> None:
    with RawServer(serving(b'[{"finetune_id": "a"},', announced=10_000)) as server:
        found = listing(server)
        assert next(found).finetune_id == "a"
        found.close()
        found.close()
        assert list(found) == []
        assert not found.complete


words = st.text(max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
item_like = st.fixed_dictionaries(
    {}, optional=dict.fromkeys((*FinetuneItem.model_fields, "request_id", "new_field"), json_values)
)


@settings(max_examples=60)
@given(st.lists(item_like | json_values, max_size=5))
def test_any_json_array_is_read_to_its_end(values: list[Any]) -> None:
    with RawServer(serving(json.dumps(values).encode())) as server, listing(server) as found:
        items = list(found)
    assert found.complete
    assert found.items == len(values)
    assert len(items) + found.skipped == found.items
    for item in items:
        assert item.finetune_id
        assert not (item.trained and item.failed)

"""Calls of the API that end in an error, and a server that says one thing."""

import traceback
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import SegmindError
from finetune_worker.segmind.models import SubmitRequest
from wire.rawserver import Wire

KEY = "SG_test_0123456789"
REQUEST = SubmitRequest(
    name="job", data_source_path="https://b.example/x.zip", instance_prompt="a 1MAN", trigger_word="1MAN"
)
BIG = REQUEST.model_copy(update={"advance_parameters": {"filler": "x" * 30_000_000}})

Op = Callable[[SegmindClient], object]


def submit(client: SegmindClient) -> object:
    return client.submit(REQUEST)


REPEATABLE: dict[str, Op] = {
    "details": lambda client: client.details("ft-1"),
    "list": lambda client: list(client.list_finetunes()),
    "presign_upload": lambda client: client.presign_upload("x"),
    "set_access": lambda client: client.set_access("ft-1", public=True),
    "credits": lambda client: client.credits(),
}


def failure(
    url: str, call: Op, *, connect_timeout: float = 2, read_timeout: float = 5, call_timeout: float = 10
) -> SegmindError:
    """Make the call and return its error, checked for secrets."""
    with (
        SegmindClient(
            url, SecretStr(KEY), connect_timeout=connect_timeout, read_timeout=read_timeout, call_timeout=call_timeout
        ) as client,
        pytest.raises(SegmindError) as caught,
    ):
        call(client)
    shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert KEY not in shown
    assert caught.value.__cause__ is None
    return caught.value


def replying(status: int, body: bytes = b"", **headers: str) -> Callable[[Wire], None]:
    def talk(wire: Wire) -> None:
        while wire.hear():
            wire.reply(status, body, **headers)

    return talk

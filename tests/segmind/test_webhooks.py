"""The webhook API's replies, of which no page tells: as the SDK's own tests have them, and a little odder."""

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from finetune_queue.settings import Settings
from finetune_worker.segmind.errors import MalformedReply, Rejected
from finetune_worker.segmind.webhooks import WebhookClient
from wire.rawserver import Heard, RawServer, Wire, answering


class Said:
    """What the API says next."""

    body: object = {}


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def client(said: Said) -> Iterator[WebhookClient]:
    def answer(wire: Wire, _heard: Heard) -> None:
        wire.reply(200, json.dumps(said.body).encode())

    with RawServer(answering(answer)) as server, WebhookClient(server.url, SecretStr("SG_test_0123456789")) as client:
        yield client


CHANGES: dict[str, Callable[[WebhookClient], None]] = {
    "add": lambda client: client.add("https://gateway.example/hook"),
    "update": lambda client: client.update("wh-1", "https://gateway.example/hook"),
    "deactivate": lambda client: client.deactivate("wh-1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_the_api_says_it_made(client: WebhookClient, said: Said, name: str) -> None:
    said.body = {"status": "success", "webhook_id": "wh-1", "message": "Webhook added successfully"}
    CHANGES[name](client)


@pytest.mark.parametrize("name", CHANGES)
def test_a_success_with_the_status_error_is_none(client: WebhookClient, said: Said, name: str) -> None:
    said.body = {"status": "error", "message": "Webhook not found"}
    with pytest.raises(Rejected, match="It said: Webhook not found"):
        CHANGES[name](client)


@pytest.mark.parametrize("none", [None, []])
def test_no_webhooks(client: WebhookClient, said: Said, none: object) -> None:
    said.body = {"webhooks": none}
    assert client.webhooks() == []


@pytest.mark.parametrize("body", [{"error": "down"}, {"status": "error", "message": "down"}, {}])
def test_a_reply_that_says_no_webhooks_is_not_that_there_are_none(
    client: WebhookClient, said: Said, body: object
) -> None:
    said.body = body
    with pytest.raises(MalformedReply):
        client.webhooks()
    with pytest.raises(MalformedReply):
        client.deliveries("wh-1")


def test_a_webhook_that_says_no_events_may_be_for_finetunes(client: WebhookClient, said: Said) -> None:
    said.body = {"webhooks": [{"webhook_id": "wh-1", "webhook_url": "https://a.example", "event_types": None}]}
    [found] = client.webhooks()
    assert (found.event_types, found.for_finetunes) == ([], True)


def test_no_deliveries(client: WebhookClient, said: Said) -> None:
    said.body = {"webhook_id": "wh-1", "logs": None}
    assert client.deliveries("wh-1") == []


def test_where_both_apis_are_is_what_the_official_sdk_says() -> None:
    sdk: Any = importlib.import_module("segmind")  # no import statement: this folder hides the package from mypy
    assert f"{Settings().segmind_base_url}/finetune/request" == sdk.client.Finetune.base_url
    assert Settings().webhook_api == sdk.client.Webhooks.base_url

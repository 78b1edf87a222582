"""The README's ways in are requests that would be accepted, by a client set up as the contract says."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.contract import parse_request
from finetune_queue.contract.event import type_name
from finetune_queue.contract.kinds import EventType
from finetune_queue.messaging import ACCEPT, QUEUE, RUN, transport_config
from finetune_queue.settings import Settings
from finetune_worker.sinks.webhook import CONTENT_TYPE

PAGE = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = [ast.parse(block) for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)]


def dictionaries() -> list[dict[str, Any]]:
    """The dictionaries of constants in the README's programs."""
    found = [ast.literal_eval(node) for tree in PYTHON for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    return [each for each in found if isinstance(each, dict)]


@pytest.mark.parametrize("way", ["sdk", "http", "celery"])
def test_the_request_of_each_way_in_is_one(way: str) -> None:
    in_python = [each for each in dictionaries() if "trigger_word" in each]
    (in_curl,) = re.findall(r"curl [^`]*-d '(\{.*?\})'", PAGE, re.DOTALL)
    shown = {"sdk": in_python[0], "http": json.loads(in_curl), "celery": in_python[1]}[way]
    request = shown if "://" in shown["dataset"] else {**shown, "dataset": "https://example.com/faces.zip"}
    assert parse_request(request).name == "my-face"


def test_the_raw_client_sends_to_where_workers_look() -> None:
    (options,) = [each for each in dictionaries() if "global_keyprefix" in each]
    config = transport_config(Settings())["broker_transport_options"]
    assert options == {name: config[name] for name in options}
    assert f'app.send_task("{RUN}", [request], queue="{QUEUE}", priority={ACCEPT})' in PAGE


def test_the_webhook_is_as_the_service_sends_it() -> None:
    assert f"Content-Type: {CONTENT_TYPE}" in PAGE
    assert f'"type": "{type_name(EventType.SUCCEEDED)}"' in PAGE

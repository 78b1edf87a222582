"""A real gateway on a real port, with a real Valkey behind it and no worker: what is on the queue stays there."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from finetune_queue.gateway.clients import token_hash
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import AccountLimits, Accounts, connect
from gateway.serving import AUTH, HOOK_SECRET, TOKEN, MakeSettings, Start, run_gateway


@pytest.fixture
def make_settings(redis_url: str, tmp_path: Path) -> MakeSettings:
    def make(**fields: Any) -> Settings:
        values: dict[str, Any] = {
            "finetune_redis_url": redis_url,
            "finetune_staging_url": f"file://{tmp_path}/staging",
            "finetune_gateway_tokens": {"tests": token_hash(TOKEN)},
            "finetune_gateway_rate_limit": "10000/1",
            "finetune_hook_secret": HOOK_SECRET,
        }
        return Settings(**values | fields)

    return make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts gateways that end with the test."""
    with ExitStack() as running:
        yield lambda settings: running.enter_context(run_gateway(settings))


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def url(start: Start, settings: Settings) -> str:
    return start(settings)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=AUTH, timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture
def queue(settings: Settings) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(settings) as found:
        yield found


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as connection:
        yield connection


@pytest.fixture
def account(client: redis.Redis) -> Accounts:
    """The default account, as a worker announces it."""
    found = Accounts(client)
    found.configure("default", AccountLimits(calls=50, window=60.0))
    return found

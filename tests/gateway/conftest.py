"""A real gateway on a real port, with a real Valkey behind it and no worker: what is on the queue stays there."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
import structlog

from finetune_queue.gateway.clients import token_hash
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import AccountLimits, Accounts
from gateway.serving import AUTH, HOOK_SECRET, TOKEN, MakeSettings, Start, run_gateway


@pytest.fixture(autouse=True)
def _plain_logs(_fresh_logging: None) -> None:
    """Lines of JSON; the library's own default shows every local variable of a traceback, in seconds."""
    add_level, as_text = structlog.processors.add_log_level, structlog.processors.format_exc_info
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, add_level, as_text, structlog.processors.JSONRenderer()]
    )


@pytest.fixture(scope="session")
def make_settings(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> MakeSettings:
    folder = tmp_path_factory.mktemp("gateway")

    def make(**fields: Any) -> Settings:
        values: dict[str, Any] = {
            "finetune_redis_url": valkey.url,
            "finetune_staging_url": f"file://{folder}/staging",
            "finetune_gateway_tokens": {"tests": token_hash(TOKEN)},
            "finetune_gateway_rate_limit": "10000/1",
            "finetune_hook_secret": HOOK_SECRET,
        }
        return Settings(**values | fields)

    return make


@pytest.fixture
def start(redis_url: str) -> Iterator[Start]:
    """Starts gateways that end with the test."""
    with ExitStack() as running:
        yield lambda settings: running.enter_context(run_gateway(settings))


@pytest.fixture(scope="session")
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture(scope="session")
def shared_url(settings: Settings) -> Iterator[str]:
    with run_gateway(settings) as url:
        yield url


@pytest.fixture
def url(shared_url: str, redis_url: str) -> str:
    """The address of one gateway for all tests, its database emptied."""
    return shared_url


@pytest.fixture
def staging(settings: Settings) -> Path:
    """The staging store, empty."""
    folder = Path(urlsplit(settings.finetune_staging_url).path)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=AUTH, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def queue(settings: Settings, redis_url: str) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(settings) as found:
        yield found


@pytest.fixture
def account(client: redis.Redis) -> Accounts:
    """The default account, as a worker announces it."""
    found = Accounts(client)
    found.configure("default", AccountLimits(calls=50, window=60.0))
    return found

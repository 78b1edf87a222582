"""What every test gets: no settings from outside, no network but loopback, and a real Valkey when it asks for one."""

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from finetune_queue.local.valkey import ValkeyServer

# At import, before any fixture: a developer's key or server must never reach a test or its workers.
for _name in [name for name in os.environ if name.upper().startswith(("FINETUNE_", "SEGMIND_"))]:
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _no_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own empty folder, where no `.env` lies."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Fail a test that connects to another machine; socket files are fine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))
        yield


def _guarded(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_loopback(str(address[0])):
            # An outcome of pytest, which no `except Exception` on the way can swallow.
            pytest.fail(f"a test tried to connect to {address[0]}; tests stay on loopback addresses")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One real server for each process that runs tests. A test that stops or kills it starts one of its own instead."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """The URL of an empty database."""
    with redis.Redis.from_url(valkey.url, socket_timeout=5, socket_connect_timeout=5) as client:
        client.flushall()
    return valkey.url

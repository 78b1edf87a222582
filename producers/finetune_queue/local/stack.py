"""The whole system as child processes: Valkey, the sandbox, workers, Flower and the HTTP gateway."""

import json
import os
import secrets
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Self

from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer, free_port
from finetune_queue.settings import Settings, load_settings

# How the names of the caller's own settings begin, which the children must not see.
_OTHERS_SETTINGS = ("FINETUNE_", "SEGMIND_", "SANDBOX_", "CELERY_", "FLOWER_")
_START_TIMEOUT = 60.0
# The one of Standard Webhooks' own examples: with it docs/samples/webhook.mjs can be tried.
_SIGNING_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
_GRACE = 5.0

_ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Asks this machine, whatever proxy the environment names for others."""


class LocalStack:
    """A context manager that starts everything, ready for use, and ends all of it.

    Nothing of the caller's environment, `.env` or secrets reaches the children: they run on the settings given here,
    so they cannot touch a real account.

    Args:
        folder: Where data, logs, weights and staged datasets lie; made if missing.
        workers: How many workers to start.
        threads: How many tasks a worker runs at once.
        flower: Also start Flower.
        gateway: Also start the HTTP gateway.
        rate_limit: The account's limit in calls/seconds, as the sandbox enforces it and the workers know it.
        sandbox: Settings of the sandbox (`SANDBOX_...` variables).
        settings: Settings of the workers and of `settings_env` (`FINETUNE_...` and `SEGMIND_...` variables).
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        threads: int = 8,
        flower: bool = False,
        gateway: bool = False,
        rate_limit: str = "50/60",
        sandbox: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self._worker_count = workers
        self._threads = threads
        self._with_flower = flower
        self._with_gateway = gateway
        self._rate_limit = rate_limit
        self._sandbox_settings = dict(sandbox or {})
        self._more_settings = dict(settings or {})
        self._started = ExitStack()
        self._others: list[Child] = []
        self.valkey = ValkeyServer(self.folder / "valkey")
        self.workers: list[Child] = []
        self.sandbox_url = ""
        self.flower_url = ""
        self.gateway_url = ""
        self._api_key = ""
        self._hook_secret = secrets.token_hex(32)

    @property
    def settings_env(self) -> dict[str, str]:
        """The variables that a producer of this stack needs."""
        return {
            "FINETUNE_REDIS_URL": self.valkey.url,
            "FINETUNE_ARTIFACT_URL": (self.folder / "artifacts").as_uri(),
            "FINETUNE_STAGING_URL": (self.folder / "staging").as_uri(),
            "FINETUNE_SECRETS_DIR": str(self.folder / "secrets"),
            "FINETUNE_LOG_FORMAT": "console",
            "FINETUNE_SIGNING_SECRET": _SIGNING_SECRET,
            "FINETUNE_HOOK_SECRET": self._hook_secret,
            "FINETUNE_POLL_MIN_INTERVAL": "1",  # seconds: trainings in the sandbox last seconds, not minutes
            **self._more_settings,
        }

    @property
    def worker_env(self) -> dict[str, str]:
        """The variables that a worker of this stack needs, with the sandbox's API key."""
        return {
            "SEGMIND_BASE_URL": self.sandbox_url,
            "SEGMIND_API_KEY": self._api_key,
            "SEGMIND_RATE_LIMIT": self._rate_limit,
            "TMPDIR": str(self.folder / "tmp"),
            **self.settings_env,
        }

    @property
    def settings(self) -> Settings:
        """The settings of a producer in this process."""
        return load_settings(self.settings_env)

    @property
    def children(self) -> list[Child]:
        """Every process of the stack, in the order of their start."""
        return [self.valkey.process, *self._others]

    def sandbox_calls(self) -> dict[str, dict[str, int]]:
        """Return how many calls the sandbox has answered, by operation and outcome."""
        with _ask(f"{self.sandbox_url}/_sandbox/report", timeout=5) as reply:
            calls: dict[str, dict[str, int]] = json.load(reply)["calls"]
        return calls

    def start_worker(self, name: str) -> Child:
        """Start one more worker and wait until it takes work.

        Raises:
            ProcessError: It ended or was not ready in time.
        """
        worker = self.launch_worker(name)
        self._await_worker(worker)
        return worker

    def launch_worker(self, name: str) -> Child:
        """Start one more worker and do not wait for it."""
        options = ["-P", "threads", "-c", str(self._threads), "-n", f"{name}@%h", "--loglevel", "INFO"]
        worker = self._launch(name, ["celery", "--quiet", "-A", "finetune_worker", "worker", *options], self.worker_env)
        self.workers.append(worker)
        return worker

    def __enter__(self) -> Self:
        for part in ("", "secrets", "tmp"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        with ExitStack() as started:  # ends what was started if a later start fails
            self._started = started
            started.enter_context(self.valkey)
            self._start_sandbox()
            # Flower and the workers are slow to start, so all at once.
            flower = self._launch_flower() if self._with_flower else None
            gateway = self._launch_gateway() if self._with_gateway else None
            for number in range(self._worker_count):
                self.launch_worker(f"worker{number + 1}")
            for worker in self.workers:
                self._await_worker(worker)
            if flower is not None:
                flower.wait_until(lambda: _is_healthy(f"{self.flower_url}/healthcheck"), timeout=_START_TIMEOUT)
            if gateway is not None:
                self._await_gateway(gateway)
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def _start_sandbox(self) -> None:
        env = {"SANDBOX_RATE_LIMIT": self._rate_limit, **self._sandbox_settings}
        sandbox = self._launch("sandbox", ["segmind_sandbox"], env)
        ready = json.loads(sandbox.wait_for_line(lambda line: line.startswith("{"), timeout=_START_TIMEOUT))
        self.sandbox_url, self._api_key = ready["base_url"], ready["api_keys"][0]

    @staticmethod
    def _await_worker(worker: Child) -> None:
        worker.wait_for_line(lambda line: " ready." in line, timeout=_START_TIMEOUT)

    def _launch_flower(self) -> Child:
        port = free_port()
        self.flower_url = f"http://127.0.0.1:{port}"
        columns = "--tasks_columns=name,args,state,result,received,runtime,worker"
        options = ["--address=127.0.0.1", f"--port={port}", columns]
        return self._launch("flower", ["celery", "-A", "finetune_worker", "flower", *options], self.settings_env)

    def _launch_gateway(self) -> Child:
        return self._launch("gateway", ["finetune_queue.cli", "gateway", "--port", "0"], self.settings_env)

    def _await_gateway(self, gateway: Child) -> None:
        said = "Listening on "
        line = gateway.wait_for_line(lambda line: line.startswith(said), timeout=_START_TIMEOUT)
        self.gateway_url = line.removeprefix(said)

    def _launch(self, name: str, module: Sequence[str], settings: Mapping[str, str]) -> Child:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_OTHERS_SETTINGS)}
        child = Child(
            name,
            [sys.executable, "-m", *module],
            # Without Celery's warning of running as root, which is usual in a container on one's own machine.
            env={
                **inherited,
                "PYTHONUNBUFFERED": "1",
                "PYTHONWARNINGS": "ignore:You're running the worker",
                **settings,
            },
            cwd=self.folder,  # where no `.env` lies
            log=self.folder / f"{name}.log",
        )
        self._started.callback(child.stop, grace=_GRACE)
        self._others.append(child.start())
        return child


def _is_healthy(url: str) -> bool:
    try:
        with _ask(url, timeout=1) as reply:
            return bool(reply.status == HTTPStatus.OK)
    except OSError:  # not listening yet
        return False

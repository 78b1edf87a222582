"""A live sandbox for tests: a real uvicorn server in a thread, on a free port, with real sockets.

::

    from segmind_sandbox.settings import SandboxSettings
    from segmind_sandbox.testing import run_sandbox

    with run_sandbox(SandboxSettings(training_seconds=0.5, weights_bytes=65536)) as sandbox:
        sandbox.base_url                  # "http://127.0.0.1:43211", without a slash at its end
        sandbox.api_key                   # the first of the accepted keys
        sandbox.control.add_fault(op="submit", kind="reply_lost")           # once; see segmind_sandbox.faults
        sandbox.control.add_fault(op="download", kind="truncated", after_bytes=1000, count=2)
        sandbox.control.add_fault(op="training", kind="fail_training", message="no faces", match="job-7")
        sandbox.control.report()["submits"]["by_name"]["job-7"]
        sandbox.control.trainings()       # what the sandbox knows of every job
        sandbox.control.change_training(finetune_id, hold=True)
        sandbox.control.change_settings(rate_limit="5/1")
        sandbox.control.reset()           # back to the start, so that one sandbox can serve many tests

``SandboxControl(base_url)`` alone drives a sandbox that runs in another process. Starting and stopping takes about
half a second: share one in a fixture and reset it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from segmind_sandbox.server import SandboxServer
from segmind_sandbox.settings import SandboxSettings

_TIMEOUT = 10.0


class SandboxControl:
    """The control API of a running sandbox. Every method raises httpx.HTTPStatusError if the sandbox refuses."""

    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=f"{base_url}/_sandbox", timeout=_TIMEOUT, trust_env=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        reply = self._client.request(method, path, json=body, params=query)
        if reply.is_error:
            said = reply.json()["error"] if "json" in reply.headers.get("content-type", "") else reply.text
            raise httpx.HTTPStatusError(said, request=reply.request, response=reply)
        return reply.json()

    def health(self) -> None:
        """Return once the sandbox answers. Raises httpx.TransportError if it does not within 10 s."""
        self._call("GET", "/health")

    def add_fault(self, **fault: Any) -> int:
        """Arm a fault (fields as in segmind_sandbox.faults) and return its number."""
        return int(self._call("POST", "/faults", fault)["id"])

    def remove_fault(self, number: int) -> None:
        """Disarm one fault."""
        self._call("DELETE", f"/faults/{number}")

    def faults(self) -> list[dict[str, Any]]:
        """All faults since the last reset, with what is left of their counts and how often each fired."""
        return list(self._call("GET", "/faults")["faults"])

    def report(self, window: float | None = None) -> dict[str, Any]:
        """What the sandbox saw; ``window`` (seconds) replaces that of the accounts' limits."""
        query = {} if window is None else {"window": str(window)}
        return dict(self._call("GET", "/report", None, **query))

    def trainings(self) -> list[dict[str, Any]]:
        """All jobs, oldest first: the fields of details, and request (the submit's body), created_at (to the
        microsecond), account, model_id, weights_url, hidden, held."""
        return list(self._call("GET", "/trainings")["trainings"])

    def change_training(self, finetune_id: str, **change: Any) -> dict[str, Any]:
        """hold=True|False, hidden=True|False, fail="message", status_word="WORD", finish=True, replace_weights=True."""
        return dict(self._call("PATCH", f"/trainings/{finetune_id}", change))

    def change_settings(self, **change: Any) -> None:
        """Change settings for jobs and calls from now on (fields of segmind_sandbox.control.SettingsChange)."""
        self._call("PATCH", "/settings", change)

    def test_webhook(self, webhook_id: str) -> None:
        """Have a sample payload sent to a webhook."""
        self._call("POST", f"/webhooks/{webhook_id}/test")

    def reset(self, what: str = "all") -> None:
        """Back to the start ("all"), or only "report", "faults" or "limits"."""
        self._call("POST", "/reset", {"what": what})


@dataclass(frozen=True)
class LiveSandbox:
    """A running sandbox."""

    base_url: str
    settings: SandboxSettings
    control: SandboxControl

    @property
    def api_key(self) -> str:
        """The first of the accepted keys."""
        return next(iter(self.settings.api_keys))


@contextmanager
def run_sandbox(settings: SandboxSettings | None = None) -> Iterator[LiveSandbox]:
    """Run a sandbox in a thread until the block ends.

    Raises httpx.TransportError if it does not answer within 10 s, and RuntimeError if it has not stopped after as long.
    """
    settings = settings or SandboxSettings()
    server = SandboxServer(settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([server.socket])), name="segmind-sandbox")
    control = SandboxControl(server.base_url)
    base_url = server.base_url
    thread.start()
    try:
        control.health()
        yield LiveSandbox(base_url, settings, control)
    finally:
        control.close()
        server.should_exit = True
        thread.join(_TIMEOUT)
        if thread.is_alive():
            raise RuntimeError("the sandbox did not stop")

"""The HTTP gateway under load, beside a bare FastAPI application that does one Redis command for each request.

Both are one process, on one Valkey, asked by the same clients in turns: what the machine does besides hits both alike.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

from rich.console import Console

from finetune_bench import report
from finetune_bench.ground import START, clean_environment, python
from finetune_queue.gateway.clients import new_token, token_hash
from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer, free_port

APPLICATIONS = Path(__file__).resolve().parents[1]

ROUNDS = 3
"""Turns that each application has in each load."""

REQUEST = {
    "name": "a-face",
    "instance_prompt": "photo of 1MAN",
    "trigger_word": "1MAN",
    "dataset": "https://example.com/faces.zip",
    "labels": {"team": "bench"},
}


@dataclass
class Target:
    """An application under load, and how long each request took (seconds) by what was asked."""

    name: str
    port: int
    token: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    def message(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return a request as it goes over the wire."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        if self.token:
            head += f"Authorization: Bearer {self.token}\r\n"
        return head.encode() + b"\r\n" + body


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Any]:
    """Load both with one client and with many; print the figures side by side and return them."""
    count = 300 if asked.quick else 3000
    rows = []
    with targets(folder) as (gateway, bare):
        for clients in (1, 16):
            for _ in range(ROUNDS):
                for target in (bare, gateway):
                    console.print(f"gateway: {target.name}, {clients} clients", style="dim")
                    asyncio.run(load(target, clients, count // ROUNDS))
            rows += [row(what, gateway, bare) for what in (f"submit, {clients} at once", f"get, {clients} at once")]
    title = "The gateway beside a bare FastAPI application with one Redis command"
    report.print_rows(title, rows, Console())
    return {title: rows}


@contextmanager
def targets(folder: Path) -> Iterator[tuple[Target, Target]]:
    """Run the gateway and the bare application."""
    token = new_token()
    secrets = folder / "secrets"
    secrets.mkdir(parents=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(folder / "valkey"))
        env = {
            **clean_environment(),
            "PYTHONPATH": str(APPLICATIONS),
            "FINETUNE_REDIS_URL": valkey.url,
            "FINETUNE_SECRETS_DIR": str(secrets),
            "FINETUNE_GATEWAY_TOKENS": json.dumps({"bench": token_hash(token)}),
            "FINETUNE_GATEWAY_RATE_LIMIT": "1000000/1",
        }
        gateway = Target("the gateway", free_port(), token)
        bare = Target("bare FastAPI", free_port())
        for target, module in ((gateway, ["finetune_queue.cli", "gateway", "--port"]), (bare, ["bare_app"])):
            name = module[0].partition(".")[0]
            log = folder / f"{name}.log"
            child = Child(name, python([*module, str(target.port)]), env=env, cwd=folder, log=log)
            stack.enter_context(child).wait_until(partial(_listens, target.port), timeout=START)
        yield gateway, bare


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def load(target: Target, clients: int, count: int) -> None:
    """Submit, then get what was submitted; ``clients`` connections share ``count`` requests of each."""
    body = json.dumps(REQUEST).encode()
    submits = [target.message("POST", "/v1/jobs", body)] * count
    answers = await _ask(target, f"submit, {clients} at once", clients, submits)
    gets = [target.message("GET", f"/v1/jobs/{json.loads(answer)['job_id']}") for answer in answers]
    await _ask(target, f"get, {clients} at once", clients, gets)


async def _ask(target: Target, what: str, clients: int, messages: list[bytes]) -> list[bytes]:
    left, answers = iter(messages), []
    times = target.times.setdefault(what, [])

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            for message in left:
                began = time.perf_counter()
                writer.write(message)
                answers.append(await _answer(reader))
                times.append(time.perf_counter() - began)
        finally:
            writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    target.spent[what] = target.spent.get(what, 0.0) + time.perf_counter() - began
    return answers


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["content-length"]))
    if not status.startswith("HTTP/1.1 20"):
        message = f"{status}: {body.decode(errors='replace')}"
        raise RuntimeError(message)
    return body


def row(what: str, gateway: Target, bare: Target) -> dict[str, Any]:
    """Return the figures of one load: requests per second, and the time that 99 of 100 requests took at most."""

    def rate(target: Target) -> float:
        return len(target.times[what]) / target.spent[what]

    def p99(target: Target) -> float:
        return quantiles(target.times[what], n=100)[98] * 1000

    return {
        "": what,
        "gateway_per_s": round(rate(gateway)),
        "bare_per_s": round(rate(bare)),
        "share": round(rate(gateway) / rate(bare), 2),
        "gateway_p99_ms": round(p99(gateway), 1),
        "bare_p99_ms": round(p99(bare), 1),
        "times": round(p99(gateway) / p99(bare), 1),
    }

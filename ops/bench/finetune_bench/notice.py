"""From a change at the provider to our event, with thousands of trainings in flight: by the sweeps alone, and with the
provider's webhook, through a gateway. At life's speed: the account and all settings are the usual ones."""

import time
from pathlib import Path
from statistics import median
from typing import Any

from plain_api import PlainApi
from pydantic import SecretStr
from rich.console import Console

from finetune_bench import proc
from finetune_bench.ground import ask_sandbox, make_dataset
from finetune_bench.inflight import train
from finetune_queue.contract import EventType
from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.local.stack import LocalStack
from finetune_queue.store import JobStore, SweepClock, connect
from finetune_worker.segmind.webhooks import WebhookClient
from segmind_sandbox.testing import SandboxControl

USUAL = 1200.0
"""Seconds that the trainings take and have taken: all of them may end at any moment."""

BETWEEN = 24.0
"""Seconds between two sweeps of such an account; the changes are spread over them."""

PATIENCE = 300.0
SECRET = "the-secret-of-a-benchmark-on-this-machine"  # noqa: S105 - of nothing that is worth one


def notices(folder: Path, count: int, changes: int, console: Console) -> list[dict[str, Any]]:
    """Let some of ``count`` trainings end, one at a time, and see when we tell of each."""
    console.print(f"inflight: {count:,} trainings in flight, some of which end", style="dim")
    sandbox = {"SANDBOX_RATE_LIMIT": "100000/1", "SANDBOX_TRAINING_SECONDS": "86400", "SANDBOX_WEIGHTS_BYTES": "65536"}
    settings = {"FINETUNE_POLL_MIN_INTERVAL": "10", "FINETUNE_HOOK_SECRET": SECRET}
    with (
        LocalStack(folder, workers=0, gateway=True, sandbox={**sandbox, **_LIST}, settings=settings) as stack,
        connect(stack.valkey.url) as client,
    ):
        key = stack.worker_env["SEGMIND_API_KEY"]
        ids = _submit(PlainApi(stack.sandbox_url, key), make_dataset(folder / "datasets"), count)
        store = JobStore(client)
        jobs = train(store, ids, "TRAINING_INITIATED", running_for=USUAL)
        SweepClock(client).learn_training("default", USUAL)
        worker = stack.start_worker("worker")
        control = SandboxControl(stack.sandbox_url)
        rows: list[dict[str, Any]] = []
        for how in ("sweeps alone", "with the webhook"):
            if rows:
                with WebhookClient(f"{stack.sandbox_url}/webhook", SecretStr(key)) as hooks:
                    hooks.add(stack.gateway_url + hook_path(SecretStr(SECRET), "default"))
            before, began = _lists(stack.sandbox_url), time.monotonic()
            late = []
            for number in range(changes):
                time.sleep(BETWEEN * number / changes)
                late.append(_notice(store, control, ids.pop(), jobs))
            rows.append(
                {
                    "trainings": f"{count:,}, {how}",
                    "changes": changes,
                    "median_s": round(median(late), 1),
                    "longest_s": round(max(late), 1),
                    "lists_per_minute": round(
                        60 * (_lists(stack.sandbox_url) - before) / (time.monotonic() - began), 1
                    ),
                    "worker_mb": round(proc.resident(worker.pid) / 1e6),
                }
            )
        control.close()
    return rows


_LIST = {"SANDBOX_LIST_CARRIES_WEIGHTS_URL": "true"}


def _submit(api: PlainApi, dataset: Path, count: int) -> list[str]:
    place = api.presign("all")
    api.upload(place["presigned_url"], dataset)
    return [api.submit(f"job-{number}", place["s3_url"]) for number in range(count)]


def _notice(store: JobStore, control: SandboxControl, finetune_id: str, jobs: dict[str, str]) -> float:
    """End the training; returns the seconds until the event that tells of it."""
    changed = time.time()
    control.change_training(finetune_id, finish=True)
    while time.time() < changed + PATIENCE:
        for event in store.events(jobs[finetune_id]):
            if event.kind is EventType.DOWNLOADING:
                return event.time.timestamp() - changed
        time.sleep(0.05)
    message = f"nothing told of training {finetune_id} within {PATIENCE:.0f} s"
    raise TimeoutError(message)


def _lists(sandbox_url: str) -> int:
    return sum(ask_sandbox(sandbox_url, "report")["calls"].get("list", {}).values())

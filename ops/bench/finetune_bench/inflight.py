"""Many jobs at once: what a parked job costs in Redis, what a worker does while thousands wait, what a sweep costs."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import redis
from rich.console import Console

from finetune_bench import proc
from finetune_bench.ground import START, clean_environment, make_dataset, python
from finetune_queue.contract import FineTuneRequest, JobRecord, JobState, WaitReason, new_job_id
from finetune_queue.datasets.check import check_archive
from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import AccountLimits, Accounts, Budget, CallClass, Change, JobStore, connect, keys, room_score

ACCOUNT = "default"
DAY = 86_400.0
QUIET = 10.0
"""Seconds over which an idle worker is watched."""

REPEATS = 200
"""How often an operation is timed."""


def parked(folder: Path, sizes: Sequence[int], console: Console) -> list[dict[str, Any]]:
    """Fill an account's waiting room to each of the sizes and measure the store and an idle worker."""
    rows = []
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(folder / "valkey", appendfsync="no"))
        client = stack.enter_context(connect(valkey.url))
        store = JobStore(client)
        accounts, budget = Accounts(client), _budget(client)
        accounts.configure(ACCOUNT, AccountLimits(calls=1, window=DAY))
        budget.take(ACCOUNT, "somebody", 0.0)  # from now on nobody gets a slot
        dataset = make_dataset(folder / "datasets", pictures=12, side=1024)
        checked = check_archive(dataset, trigger_word="1MAN").model_dump(mode="json")
        rows.append(
            {
                "jobs": 0,
                "bytes_per_job": 0,
                "event_stream_mb": 0,
                **_store_times(client, None),
                **_idle(folder, valkey.url, client),
            }
        )
        # A worker was here and one job is: scripts, tables and the server's buffers are no job's.
        job, count = _park(store, checked), 1
        first = _used(client)
        for size in sizes:
            console.print(f"inflight: {size:,} parked jobs", style="dim")
            while count < size:
                job = _park(store, checked)
                count += 1
            stream = int(client.memory_usage(keys.events(), samples=0) or 0)
            rows.append(
                {
                    "jobs": size,
                    "bytes_per_job": round((_used(client) - first - stream) / (size - 1)),
                    "event_stream_mb": round(stream / 1e6, 1),
                    **_store_times(client, job),
                    **_idle(folder, valkey.url, client),
                }
            )
    return rows


def _park(store: JobStore, report: dict[str, Any]) -> JobRecord:
    job, _ = store.register(new_job_id(), _request("file:///srv/datasets/faces.zip"), delay=DAY)
    job = store.transition(job, Change(delay=DAY), to=JobState.UPLOADING)
    change = Change(delay=DAY, room_score=room_score(CallClass.PREPARE, job))
    return store.transition(job, change, dataset_report=report, waiting_for=WaitReason.API_SLOT)


def _request(dataset: str) -> FineTuneRequest:
    return FineTuneRequest(
        name="a-face", instance_prompt="photo of 1MAN", trigger_word="1MAN", dataset=dataset, labels={"team": "bench"}
    )


def _budget(client: redis.Redis) -> Budget:
    return Budget(client, call_timeout=70, handover=15, first_sweep=10, backoff_base=2, backoff_max=300)


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _store_times(client: redis.Redis, last: JobRecord | None) -> dict[str, float]:
    """Time what every call and every pass of a dispatcher does; milliseconds, the round trip included."""
    accounts, budget = Accounts(client), _budget(client)
    score = 0.0 if last is None else room_score(CallClass.PREPARE, last)
    return {
        "reserve_ms": _timed(lambda: budget.reserve(ACCOUNT, 100)),
        "refused_take_ms": _timed(lambda: budget.take(ACCOUNT, "newcomer", score)),
        "status_ms": _timed(lambda: accounts.status(ACCOUNT)),
    }


def _timed(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return round(median(times) * 1000, 3)


def _idle(folder: Path, redis_url: str, client: redis.Redis) -> dict[str, float]:
    """Watch a worker that can do nothing for these jobs now: its memory, and the commands that it sends to Redis."""
    settings = _worker_settings(redis_url, "http://127.0.0.1:9", f"1/{DAY:g}", folder)
    command = python(["celery", "-A", "finetune_worker", "worker", "-P", "threads", "-c", "8", "--loglevel", "INFO"])
    with Child("worker", command, env=settings, cwd=folder, log=folder / "worker.log") as worker:
        worker.wait_for_line(lambda line: " ready." in line, timeout=START)
        time.sleep(QUIET / 2)  # its first round over everything is no idleness
        before = _commands(client)
        time.sleep(QUIET)
        commands = _commands(client) - before - 1
        return {
            "idle_commands_per_s": round(commands / QUIET, 1),
            "worker_mb": round(proc.resident(worker.pid) / 1e6, 1),
        }


def _commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


def _worker_settings(redis_url: str, api_url: str, rate: str, folder: Path) -> dict[str, str]:
    return {
        **clean_environment(),
        "SEGMIND_BASE_URL": api_url,
        "SEGMIND_API_KEY": "sandbox-key",
        "SEGMIND_RATE_LIMIT": rate,
        "FINETUNE_REDIS_URL": redis_url,
        "FINETUNE_ARTIFACT_URL": f"file://{folder}/weights",
        "FINETUNE_STAGING_URL": f"file://{folder}/staging",
        "FINETUNE_SECRETS_DIR": str(folder),
        "FINETUNE_LOG_LEVEL": "INFO",
    }


def sweeps(folder: Path, items: int, console: Console) -> list[dict[str, Any]]:
    """Time one sweep over a list of many items, in a process of its own whose memory is watched."""
    rows: list[dict[str, Any]] = []
    for title, jobs, status in (
        ("a long history, ten jobs", 10, "TRAINING_INITIATED"),
        ("all in flight, none has moved", items, "TRAINING_INITIATED"),
        ("all in flight, all have moved", items, "DATA_PROCESSING"),
    ):
        console.print(f"inflight: a sweep of {items:,} items, {title}", style="dim")
        place = folder / str(len(rows))
        with ExitStack() as stack:
            valkey = stack.enter_context(ValkeyServer(place / "valkey", appendfsync="no"))
            client = stack.enter_context(connect(valkey.url))
            api_url = stack.enter_context(_list_server(_list(items)))
            train(JobStore(client), [f"finetune-{number}" for number in range(jobs)], status)
            settings = _worker_settings(valkey.url, api_url, "1000/1", place)
            command = python(["finetune_bench.sweeper"])
            child = stack.enter_context(Child("sweeper", command, env=settings, cwd=place, log=place / "sweeper.log"))
            line = child.wait_for_line(lambda text: text.startswith('{"sweep"'), timeout=600)
        rows.append({"list": f"{items:,} items: {title}", **json.loads(line)["sweep"]})
    return rows


def train(store: JobStore, ids: Sequence[str], status: str, *, running_for: float = 0.0) -> dict[str, str]:
    """Make a job for each training, which has run for so many seconds; returns the jobs' ids by the trainings'."""
    made = {}
    for finetune_id in ids:
        job, _ = store.register(new_job_id(), _request("https://example.com/faces.zip"), delay=DAY)
        for state in (JobState.UPLOADING, JobState.SUBMITTING):
            job = store.transition(job, Change(delay=DAY), to=state)
        submitted = job.updated_ms - int(running_for * 1000)
        fields: dict[str, Any] = {"finetune_id": finetune_id, "submitted_ms": submitted, "provider_status": status}
        change = Change(delay=DAY, own=finetune_id)
        store.transition(job, change, to=JobState.TRAINING, waiting_for=WaitReason.PROVIDER, **fields)
        made[finetune_id] = job.id
    return made


def _list(items: int) -> bytes:
    return json.dumps(
        [
            {
                "id": f"id-{number}",
                "data_source_path": f"https://finetune-pipeline.s3.amazonaws.com/uploads/user/{number}-faces.zip",
                "name": f"job-{number}",
                "status": "TRAINING_INITIATED",
                "error_message": None,
                "segmind_model_path": None,
                "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
                "segmind_public_model": False,
                "train_type": "LORA",
                "source_type": "AWS_S3",
                "base_model": "FAST_FLUX",
                "theme": "subject",
                "cloud_storage_url": None,
                "finetune_id": f"finetune-{number}",
                "model_information": {},
            }
            for number in range(items)
        ]
    ).encode()


@contextmanager
def _list_server(body: bytes) -> Iterator[str]:
    """Serve the list, as the sandbox would, without ten thousand trainings behind it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

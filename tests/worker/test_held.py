"""A job is held for as long as each call of its stages can last, so that a living worker is not taken for dead."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from finetune_queue.contract import JobRecord, JobState
from finetune_queue.store import START_WITHIN, Change, keys
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.sweep import ACTING
from support.bench import Bench, make_settings, sweep
from support.images import image_bytes, make_zip

CALL = 7.0
STATES = [JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING]
REPORT = {"ok": True, "images": 1, "captions": 0, "bytes": 1, "sha256": "0" * 64, "findings": []}


@pytest.fixture
def impatient(bench: Bench, tmp_path: Path) -> Bench:
    """Its leases are much shorter than its calls may be."""
    redis_url = bench.container.settings.finetune_redis_url
    values = make_settings(bench.sandbox, redis_url, tmp_path, finetune_lease=0.3, segmind_call_timeout=CALL)
    bench.container = replace(bench.container, settings=values)
    return bench


def brought(bench: Bench, to: JobState, **fields: Any) -> JobRecord:
    folder = Path(bench.container.settings.finetune_dataset_roots[0])
    dataset = make_zip(folder / "d.zip", {"1.jpg": image_bytes(1, (600, 600))})
    job = bench.job(dataset=f"file://{dataset}")
    for state in STATES[: STATES.index(to) + 1]:
        job = bench.container.jobs.transition(job, Change(delay=60), to=state)
    return bench.container.jobs.transition(job, Change(delay=60), **fields) if fields else job


@pytest.mark.parametrize(
    ("call", "state", "fields"),
    [
        ("presign_upload", JobState.UPLOADING, {}),
        ("presign_upload", JobState.UPLOADING, {"dataset_report": REPORT}),
        ("submit", JobState.SUBMITTING, {"dataset_url": "https://example.com/a.zip"}),
        ("details", JobState.SUBMITTING, {"dataset_url": "https://example.com/a.zip", "adopting": "ft-1"}),
        ("details", JobState.SUBMITTING, {"intent_ms": 1, "candidates": ["ft-1"]}),
        ("details", JobState.TRAINING, {"finetune_id": "ft-1", "wants_details": True}),
        ("private_link", JobState.DOWNLOADING, {"weights_url": "https://example.com/w", "weights_private": True}),
    ],
)
def test_for_as_long_as_its_call_can_last(
    impatient: Bench, monkeypatch: pytest.MonkeyPatch, call: str, state: JobState, fields: dict[str, Any]
) -> None:
    job = brought(impatient, state, **fields)
    lease, held = impatient.container.settings.finetune_lease, []

    def look(*_: object, **__: object) -> NoReturn:
        due = impatient.container.jobs._redis.zscore(keys.deadlines(), job.id) or 0.0
        held.append((due - impatient.read(job).updated_ms) / 1000)
        raise RuntimeError

    monkeypatch.setattr(SegmindClient, call, look)
    impatient.run(job)
    [seconds] = held
    assert START_WITHIN + CALL <= seconds < START_WITHIN + CALL + lease


def test_a_sweep_is_not_replaced_for_as_long_as_it_can_last(impatient: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(impatient, JobState.TRAINING, finetune_id="ft-1")
    held = []

    def look(*_: object, **__: object) -> NoReturn:
        client = impatient.container.jobs._redis
        until_ms = int(str(client.hget(keys.account("default"), "sweeping_until")))
        held.append((until_ms - impatient.container.deadlines.now_ms()) / 1000)
        raise RuntimeError

    monkeypatch.setattr(SegmindClient, "details", look)
    with pytest.raises(RuntimeError):
        sweep(impatient.container, "default")
    [seconds] = held
    assert START_WITHIN + CALL < seconds <= START_WITHIN + CALL + ACTING


def test_a_job_that_is_held_for_long_enough_is_not_written_again(impatient: Bench) -> None:
    job = brought(impatient, JobState.UPLOADING)
    claim = Claim(impatient.container.jobs, job, "worker", lease=30.0, out_of_time=lambda: False)
    claimed = claim.job.version
    claim.hold(60.0)
    claim.hold(60.0)
    assert claim.job.version == claimed + 1
    claim.hold(90.0)
    assert claim.job.version == claimed + 2


@pytest.mark.parametrize("state", [JobState.UPLOADING, JobState.DOWNLOADING])
def test_a_storage_none_of_whose_many_addresses_answers_is_given_up_before_its_job_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf_port: int, state: JobState
) -> None:
    """As that of S3, behind a firewall that drops what goes there: one after the other they would take 20 s."""
    redis_url = bench.container.settings.finetune_redis_url
    values = make_settings(bench.sandbox, redis_url, tmp_path, finetune_lease=10, segmind_connect_timeout=0.5)
    bench.container = replace(bench.container, settings=values)
    url = f"http://127.0.0.1:{deaf_port}/x"
    fields: dict[str, Any] = {"dataset_report": REPORT}
    if state is JobState.DOWNLOADING:
        fields = {"weights_url": url}
    job = brought(bench, state, **fields)
    bench.container.jobs.save_upload_url(job.id, json.dumps({"presigned_url": url, "s3_url": url}), 60)
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", deaf_port))
    monkeypatch.setattr("finetune_worker.wire.session.resolve", lambda *_: [address] * 40)

    began = time.monotonic()
    bench.run(job)

    assert time.monotonic() - began < values.finetune_lease
    assert bench.error(job).code == "connect_timeout"

"""What a waiting job takes of Redis' memory, which bounds how many may wait."""

from typing import Any

import redis

from finetune_queue.contract import JobState, WaitReason, new_job_id
from finetune_queue.store import CallClass, Change, JobStore, keys, room_score
from support.samples import sample_request

REPORT: dict[str, Any] = {
    "ok": True,
    "images": 12,
    "captions": 12,
    "bytes": 539_398,
    "sha256": "7d179da18a2c70c31bf7d3bcd220ecdbcb751c58940bb2336c5ee3a031a168b6",
    "short_sides": [1024, 1024],
    "findings": [],
    "omitted": {},
}


def test_what_a_parked_job_keeps_takes_2420_bytes_at_most(jobs: JobStore, client: redis.Redis) -> None:
    """With its places in sorted sets and the server's table of keys that is under 3 kB (docs/benchmarks.md)."""
    job, _ = jobs.register(new_job_id(), sample_request(labels={"team": "a"}), delay=60)
    job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
    change = Change(delay=60, room_score=room_score(CallClass.PREPARE, job))
    jobs.transition(job, change, dataset_report=REPORT, waiting_for=WaitReason.API_SLOT)

    took = [client.memory_usage(key, samples=0) for key in (keys.job(job.id), keys.job_events(job.id))]
    assert sum(size or 0 for size in took) <= 2_420

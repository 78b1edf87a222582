"""The download stage beside a worker that does not know yet that it was overtaken."""

import fcntl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_queue.contract import JobState
from finetune_queue.store import Change
from finetune_worker.stages.sweep import sweep
from support.until import until


def downloading(bench: Any) -> Any:
    bench.sandbox.control.change_settings(list_carries_weights_url=True)
    job = bench.submitting()
    bench.run(job)

    def trained() -> bool:
        sweep(bench.container, "default")
        return bench.read(job).state is JobState.DOWNLOADING

    until(trained, seconds=10)
    return bench.read(job)


def test_a_worker_that_stands_still_on_the_part_does_not_keep_the_next_one_from_downloading(bench: Any) -> None:
    job = downloading(bench)
    part: Path = bench.container.part_of(job.id)
    with part.open("wb") as held:
        held.write(b"some bytes")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)

        bench.run(job)

        job = bench.read(job)
        assert job.weights is not None
        assert job.attempts == 0
        assert part.read_bytes() == b"some bytes"
        assert [path.name for path in part.parent.iterdir() if path.is_dir()] == []
    part.unlink()


def test_an_overtaken_worker_does_not_replace_the_weights(bench: Any) -> None:
    job = downloading(bench)
    stored = Path(urlsplit(bench.container.artifacts.url_of(f"{job.id}/weights.safetensors")).path)
    put_file = bench.container.artifacts.put_file

    def put_late(part: Path, name: str, on_progress: Any) -> Any:
        """Another worker stored the weights while this one stood still."""
        bench.container.jobs.transition(bench.read(job), Change(delay=60), owner="another")
        stored.parent.mkdir(parents=True)
        stored.write_bytes(b"better")
        on_progress.__self__._last_sign = -1e9
        return put_file(part, name, on_progress)

    bench.container.artifacts.put_file = put_late
    result = bench.run(job)

    assert "refused" in result.sentence
    assert stored.read_bytes() == b"better"
    assert [path.name for path in stored.parent.iterdir()] == ["weights.safetensors"]

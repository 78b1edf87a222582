"""The download stage beside a worker that does not know yet that it was overtaken."""

import errno
import fcntl
import itertools
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.storage import DiskFullError, Place, UnavailableError, drivers
from finetune_queue.store import Change
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.transfer.errors import NoAnswer, NoRoom
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.transfer.partfile import SPARE_BYTES
from support.bench import Bench


def test_a_worker_that_stands_still_on_the_part_does_not_keep_the_next_one_from_downloading(bench: Bench) -> None:
    job = bench.downloading()
    part: Path = bench.container.work_folder.part_of(job.id)
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


def test_an_overtaken_worker_does_not_replace_the_weights(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.downloading()
    stored = Path(urlsplit(bench.container.artifacts.url_of(f"{job.id}/weights.safetensors")).path)
    put_file = bench.container.artifacts.put_file

    def put_late(part: Path, name: str, on_progress: Any) -> Any:
        """Another worker stored the weights while this one stood still."""
        bench.container.jobs.transition(bench.read(job), Change(delay=60), owner="another")
        stored.parent.mkdir(parents=True)
        stored.write_bytes(b"better")
        monkeypatch.setattr(
            "finetune_worker.stages.claim._SIGNS_PER_LEASE", 1e9
        )  # so that the next one is not left out
        return put_file(part, name, on_progress)

    monkeypatch.setattr(bench.container.artifacts, "put_file", put_late)
    result = bench.run(job)

    assert "refused" in result.sentence
    assert stored.read_bytes() == b"better"
    assert [path.name for path in stored.parent.iterdir()] == ["weights.safetensors"]


def downloads(bench: Bench) -> int:
    """How often the weights were asked for."""
    return sum(bench.sandbox.control.report()["calls"]["download"].values())


def test_to_find_out_that_the_weights_need_a_link_uses_no_try(bench: Bench) -> None:
    """Those of FLUX_PRO always do, and nothing says so before."""
    bench.change_settings(finetune_max_attempts=1)
    bench.sandbox.control.change_settings(private_weights=True)
    job = bench.downloading()

    bench.run(job)
    waiting = bench.read(job)
    assert (waiting.state, waiting.attempts, waiting.error) == (JobState.DOWNLOADING, 0, None)
    bench.run(job)

    assert bench.read(job).weights is not None


@pytest.mark.parametrize("status", [400, 404, 503])
def test_weights_that_were_refused_once_and_have_no_link_are_fetched_by_their_url(bench: Bench, status: int) -> None:
    """The links are the sibling APIs': nothing says that there is one for weights that are public."""
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="http_error", status=403)
    bench.sandbox.control.add_fault(op="file_link", kind="http_error", status=status, count=None)
    bench.run(job)
    bench.run(job)
    if bench.read(job).state is JobState.FAILED:
        with FineTuneQueue(bench.container.settings) as queue:
            queue.retry(job.id)

    bench.run(job)

    assert bench.read(job).weights is not None


@pytest.mark.parametrize("end", ["?X-Amz-Signature=refused", "/gone"])
def test_so_are_those_whose_link_leads_nowhere(bench: Bench, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Whoever signs any path gives a link for public weights as well."""
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="http_error", status=403)
    monkeypatch.setattr(SegmindClient, "private_link", lambda _, url: f"{url}{end}")
    for _ in range(3):
        bench.run(job)

    assert bench.read(job).weights is not None


def test_weights_that_are_not_there_for_a_moment_are_asked_for_again(bench: Bench) -> None:
    bench.change_settings(finetune_max_attempts=3)
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="http_error", status=404, count=2)

    for tried in (1, 2):
        bench.run(job)
        assert (bench.read(job).state, bench.read(job).attempts) == (JobState.DOWNLOADING, tried)
    bench.run(job)

    assert bench.read(job).weights is not None


def test_weights_that_are_gone_for_good_fail_their_job(bench: Bench) -> None:
    bench.change_settings(finetune_max_attempts=2)
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="http_error", status=404, count=None)

    for _ in range(2):
        bench.run(job)

    assert (bench.read(job).state, bench.error(job).code) == (JobState.FAILED, "weights_gone")
    assert "finetune retry" in bench.error(job).action


def test_a_vanished_bucket_is_said_and_the_weights_in_hand_are_stored_later(bench: Bench, s3: Any, bucket: str) -> None:
    object.__setattr__(bench.container, "artifacts", Place(f"s3://{bucket}/weights"))
    job = bench.downloading()
    s3.delete_bucket(Bucket=bucket)

    bench.run(job)

    failed = bench.read(job)
    assert (failed.state, bench.error(job).code) == (JobState.FAILED, "place_missing")
    assert bench.error(job).message == f"The bucket {bucket} does not exist."
    assert bench.error(job).action.startswith("Create it, ")
    assert "finetune retry" in bench.error(job).action

    s3.create_bucket(Bucket=bucket)
    with FineTuneQueue(bench.container.settings) as queue:
        queue.retry(job.id)
    bench.run(job)

    job = bench.read(job)
    assert job.weights is not None
    assert job.weights.url == f"s3://{bucket}/weights/{job.id}/weights.safetensors"
    assert s3.head_object(Bucket=bucket, Key=f"weights/{job.id}/weights.safetensors")["ContentLength"] == 65536
    assert (downloads(bench), bench.submits()) == (1, 1)
    assert not bench.container.work_folder.part_of(job.id).exists()


@pytest.mark.parametrize(
    "fault", [{"kind": "http_error", "status": 503}, {"kind": "reset"}], ids=lambda each: each["kind"]
)
def test_an_outage_of_segmind_s_storage_ends_no_paid_job(bench: Bench, fault: dict[str, Any]) -> None:
    bench.change_settings(finetune_max_attempts=2)
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", count=4, **fault)

    for outages in range(1, 5):
        bench.run(job)
        waiting = bench.read(job)
        assert (waiting.state, waiting.attempts, waiting.outages) == (JobState.DOWNLOADING, 0, outages)
    bench.run(job)

    assert bench.read(job).weights is not None


@pytest.mark.parametrize(("brings", "ends"), [(10_000, False), (100, True)], ids=["a part of it", "next to nothing"])
def test_a_download_that_breaks_off_uses_no_try_if_it_got_further(bench: Bench, brings: int, ends: bool) -> None:  # noqa: FBT001
    bench.change_settings(finetune_max_attempts=2)
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="truncated", after_bytes=brings, count=5)

    for _ in range(6):
        bench.run(job)

    job = bench.read(job)
    assert (job.state is JobState.FAILED, job.weights is None) == (ends, ends)


def test_one_that_breaks_off_beside_a_part_that_another_holds_keeps_nothing_and_uses_a_try(bench: Bench) -> None:
    """It would begin anew each time, for as long as the other stands still."""
    bench.change_settings(finetune_max_attempts=2)
    job = bench.downloading()
    bench.sandbox.control.add_fault(op="download", kind="truncated", after_bytes=10_000, count=2)
    part: Path = bench.container.work_folder.part_of(job.id)
    with part.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        for _ in range(2):
            bench.run(job)

    assert bench.read(job).state is JobState.FAILED
    part.unlink()


def test_an_address_that_nobody_can_call_is_no_outage(bench: Bench) -> None:
    """It would be called for ever."""
    job = bench.downloading()
    nowhere = "https://.s3.amazonaws.com/weights?X-Amz-Signature=feed-face"
    bench.container.jobs.transition(job, Change(delay=60), weights_url=nowhere)

    bench.run(job)

    assert (bench.read(job).state, bench.error(job).code) == (JobState.FAILED, "url_not_allowed")
    assert "feed-face" not in bench.error(job).message


def test_an_outage_of_the_store_ends_no_paid_job(bench: Bench, s3: Any, bucket: str) -> None:
    bench.change_settings(finetune_max_attempts=2)
    object.__setattr__(bench.container, "artifacts", Place(f"s3://{bucket}/weights"))
    tries = bench.container.settings.finetune_max_attempts + 2

    def meets_an_outage(job: JobRecord) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
            patch.setattr(drivers, "_filesystems", {})
            patch.setattr(drivers, "CALL_SECONDS", 0.2)
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            for _ in range(tries):
                bench.run(job)
        waiting = bench.read(job)
        assert (waiting.state, waiting.owner, waiting.waiting_for) == (JobState.DOWNLOADING, "", WaitReason.BACKOFF)
        assert (waiting.takeovers, bench.error(job).code) == (0, "unavailable")

    job = bench.downloading()
    meets_an_outage(job)
    bench.run(job)
    assert bench.read(job).stage is Stage.PUBLISH
    meets_an_outage(job)
    bench.run(job)
    assert bench.read(job).state is JobState.SUCCEEDED
    assert (downloads(bench), bench.submits()) == (1, 1)


def test_what_failed_while_the_store_was_away_does_not_count_against_another_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.downloading()

    def away(*_args: object, **_options: object) -> None:
        raise UnavailableError("The store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(bench.container.artifacts, "put_file", away)
        for _ in range(bench.container.settings.finetune_max_attempts + 2):
            bench.run(job)

    def full(*_args: object, **_options: object) -> None:
        raise DiskFullError("The disk is full.")

    monkeypatch.setattr(bench.container.artifacts, "put_file", full)
    bench.run(job)
    assert (bench.read(job).state, bench.read(job).attempts) == (JobState.DOWNLOADING, 1)


def test_failures_between_outages_of_the_store_count_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.change_settings(finetune_max_attempts=3)
    job = bench.downloading()
    in_turns = itertools.cycle([UnavailableError("The store is away."), DiskFullError("The disk is full.")])

    def put_file(*_args: object, **_options: object) -> None:
        raise next(in_turns)

    monkeypatch.setattr(bench.container.artifacts, "put_file", put_file)
    for _ in range(6):
        assert bench.read(job).state is JobState.DOWNLOADING
        bench.run(job)
    assert (bench.read(job).state, bench.error(job).code) == (JobState.FAILED, "disk_full")


def test_a_full_disk_keeps_what_came_and_ends_no_paid_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.downloading()

    def full(*_args: object) -> None:
        raise NoRoom("disk_full", "The download needs 9 more bytes on the disk, which has 1 free.")

    with monkeypatch.context() as patch:
        patch.setattr("finetune_worker.transfer.partfile.PartFile.require_room", full)
        for _ in range(bench.container.settings.finetune_max_attempts + 2):
            bench.run(job)
    waiting = bench.read(job)
    assert (waiting.state, waiting.attempts) == (JobState.DOWNLOADING, 0)
    assert (bench.error(job).code, bench.error(job).retryable) == ("disk_full", True)

    bench.run(job)
    assert bench.read(job).weights is not None
    assert bench.submits() == 1


def test_jobs_whose_parts_fill_the_disk_do_not_wait_for_each_other_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kept what had arrived, and lacked what the other held."""
    bench.sandbox.control.add_fault(op="download", kind="truncated", after_bytes=40_000, count=2)
    jobs = [bench.downloading() for _ in range(2)]
    parts = [bench.container.work_folder.part_of(job.id) for job in jobs]
    for job in jobs:
        bench.run(job)
    assert [part.stat().st_size for part in parts] == [40_000, 40_000]
    usage = shutil.disk_usage

    def small(folder: Path) -> Any:
        taken = sum(part.stat().st_size for part in parts if part.exists())
        return usage(folder)._replace(free=SPARE_BYTES + 80_000 - taken)

    monkeypatch.setattr(shutil, "disk_usage", small)
    for _ in range(bench.container.settings.finetune_max_attempts + 1):
        for job in jobs:
            if bench.read(job).weights is None:
                bench.run(job)

    assert all(bench.read(job).weights for job in jobs)


def test_weights_whose_last_bytes_the_disk_lost_are_not_stored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would be made of what the disk had before, and be told of by the sha256 of what came."""
    job = bench.downloading()
    part, fsync = bench.container.work_folder.part_of(job.id), os.fsync

    def lost(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink() == part:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lost)
        bench.run(job)
    waiting = bench.read(job)
    assert waiting.error is not None
    assert (waiting.state, waiting.error.code, waiting.error.retryable) == (JobState.DOWNLOADING, "disk_failed", True)
    assert "Input/output error" in waiting.error.message
    assert not bench.container.artifacts.exists(f"{job.id}/weights.safetensors")

    bench.run(job)
    assert bench.read(job).weights is not None
    assert (downloads(bench), bench.submits()) == (2, 1)


def test_what_a_killed_worker_left_among_the_artifacts_goes_with_the_job_s_success(bench: Bench) -> None:
    job = bench.downloading()
    folder = Path(urlsplit(bench.container.artifacts.url_of(job.id)).path)
    folder.mkdir(parents=True)
    (folder / ".weights.safetensors.0123.part").write_bytes(b"some bytes")
    bench.run(job)
    bench.run(job)
    assert bench.read(job).state is JobState.SUCCEEDED
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "weights.safetensors"]


def test_a_job_whose_link_took_long_is_held_until_the_storage_must_have_answered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left of the hold for the call was shorter: the job was taken from a worker that lives."""
    bench.change_settings(finetune_lease=1.0)
    bench.sandbox.control.change_settings(private_weights=True)
    job = bench.downloading()
    bench.run(job)
    left = []

    def late(*_: object) -> str:
        time.sleep(0.9)
        return "https://example.com/weights"

    def fetch(*_: object, limits: TransferLimits, **__: object) -> None:
        held = (bench.due_ms(job) - bench.container.deadlines.now_ms()) / 1000
        left.append(held - limits.longest_silence)
        raise NoAnswer("read_timeout", "It is silent.")

    monkeypatch.setattr("finetune_worker.stages.calls.longest_call", lambda _: 1.0)
    monkeypatch.setattr(SegmindClient, "private_link", late)
    monkeypatch.setattr("finetune_worker.stages.download.fetch", fetch)
    bench.run(job)

    assert left[0] > 0


def test_the_job_is_held_for_as_long_as_a_bucket_may_be_silent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.downloading()
    lease = bench.container.settings.finetune_lease
    put_file, held = bench.container.artifacts.put_file, []

    def look(*_: object) -> None:
        held.append((bench.due_ms(job) - bench.read(job).updated_ms) / 1000)

    def put(part: Path, name: str, on_progress: Any) -> Any:
        look()
        on_progress(1, 3)
        monkeypatch.setattr("finetune_worker.stages.claim._SIGNS_PER_LEASE", 1e9)
        on_progress(2, 3)
        look()
        on_progress(3, 3)
        look()
        return put_file(part, name)

    monkeypatch.setattr(bench.container.artifacts, "put_file", put)
    bench.run(job)
    monkeypatch.setattr(bench.container.artifacts, "put_bytes", look)
    bench.run(job)

    assert [min(seconds, 4 * lease) for seconds in held] == [4 * lease, lease, 4 * lease, 4 * lease]

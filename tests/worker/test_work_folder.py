"""The folder of a queue's files: cleaned up, made anew when it is gone, and never one that others may write to."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from finetune_queue.contract import JobState, Stage
from finetune_queue.store import Change
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.transfer.limits import TransferLimits
from finetune_worker.work_folder import WorkFolder, WorkFolderError
from support.bench import Bench

QUEUE = "redis://127.0.0.1:1/0"


@pytest.fixture
def folder(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkFolder:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return WorkFolder(QUEUE, bench.container.jobs)


def test_a_folder_that_was_removed_is_made_anew(folder: WorkFolder) -> None:
    for use in (folder.clean, lambda: folder.scratch().cleanup(), lambda: folder.part_of("a-job").write_bytes(b"part")):
        shutil.rmtree(folder.ready())
        use()
    assert folder.ready().stat().st_mode & 0o777 == 0o700


def test_each_queue_has_its_own_whatever_its_password(bench: Bench, folder: WorkFolder) -> None:
    def path_of(url: str) -> Path:
        return WorkFolder(url, bench.container.jobs).ready()

    for same in ("redis://127.0.0.1:1", "redis://:secret@127.0.0.1:1/0", "rediss://user:new@127.0.0.1:1?timeout=3"):
        assert path_of(same) == folder.ready()
    others = {path_of(f"redis://{other}") for other in ("127.0.0.1:1/1", "127.0.0.1:2/0", "localhost:1/0")}
    sockets = {
        path_of(f"unix://{socket}") for socket in ("/run/a.sock", ":secret@/run/a.sock?db=0", "/run/a.sock?db=1")
    }
    assert len({folder.ready(), *others, *sockets}) == 1 + 3 + 2


def _opened(path: Path) -> None:
    path.chmod(0o770)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _file(path: Path) -> None:
    path.rmdir()
    path.touch()


@pytest.mark.parametrize(
    ("change", "why"),
    [(_opened, "other users have access to it"), (_link, "it is a link"), (_file, "File exists")],
)
def test_a_folder_that_is_not_its_own_is_refused(
    folder: WorkFolder, bench: Bench, change: Callable[[Path], None], why: str
) -> None:
    path = folder.ready()
    change(path)
    with pytest.raises(WorkFolderError, match=f"{path} cannot be used: {why}.* TMPDIR"):
        WorkFolder(QUEUE, bench.container.jobs)


def test_a_folder_of_another_user_is_refused(folder: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(WorkFolderError, match="belongs to another user"):
        folder.scratch()


@pytest.mark.parametrize(
    ("number", "code", "failures"),
    [(errno.ENOSPC, "disk_full", 0), (errno.EDQUOT, "disk_full", 0), (errno.EROFS, "disk_failed", 1)],
)
def test_a_disk_that_takes_no_folder_is_no_defect(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, code: str, failures: int
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    jobs, new, trained = bench.container.jobs, bench.job(), bench.submitting()
    trained = jobs.transition(trained, Change(delay=60), to=JobState.TRAINING, finetune_id="f-1")
    trained = jobs.transition(trained, Change(delay=60), to=JobState.DOWNLOADING, weights_url="https://weights.example")
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", fail)
        bench.run(new)
        shutil.rmtree(bench.container.work_folder.ready())
        bench.run(trained)
    for job in (new, trained):
        error = bench.error(job)
        assert (error.code, error.retryable) == (code, True)
        assert f"cannot be used: {os.strerror(number)}. " in error.message
    assert bench.read(new).attempts == 1
    assert bench.read(trained).attempts == failures  # it is paid for: a full disk is sat out


def test_a_folder_that_cannot_be_cleaned_stops_no_job(bench: Bench) -> None:
    path = bench.container.work_folder.ready()
    path.chmod(0o777)
    job = bench.container.jobs.transition(bench.job(), Change(delay=0), to=JobState.UPLOADING)
    try:
        with capture_logs() as lines:
            Dispatcher(bench.container).step()
    finally:
        path.chmod(0o700)  # other tests have the same
    [line] = [line for line in lines if line["event"] == "work_folder_not_cleaned"]
    assert str(path) in line["error"]
    assert bench.read(job).version > job.version


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk has free, one number for each look and the last one for all that follow."""
    left = [TransferLimits().max_bytes]

    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return left


@pytest.mark.usefixtures("free")
def test_what_downloads_of_ended_jobs_left_is_removed_and_what_may_go_on_is_kept(bench: Bench) -> None:
    container = bench.container
    live, failed, cancelled = (bench.job() for _ in range(3))
    container.jobs.transition(failed, Change(), to=JobState.FAILED, failed_stage=Stage.DOWNLOAD)
    container.jobs.transition(cancelled, Change(), to=JobState.CANCELLED)
    for job_id in (live.id, failed.id, cancelled.id, "gone"):
        container.work_folder.part_of(job_id).write_bytes(b"part")

    assert container.work_folder.clean() == 2

    assert {path.name for path in container.work_folder.ready().glob("*.part")} == {
        f"{live.id}.part",
        f"{failed.id}.part",
    }
    for job in (live, failed):
        container.work_folder.part_of(job.id).unlink()


def test_parts_of_failed_jobs_do_not_keep_the_disk_full_for_as_long_as_the_jobs(bench: Bench, free: list[int]) -> None:
    """A bucket that was gone for an hour leaves as many whole files as jobs failed by it."""
    container = bench.container
    live, oldest, older, newest = (bench.job() for _ in range(4))
    for age, job in enumerate((live, oldest, older, newest)):
        part = container.work_folder.part_of(job.id)
        part.write_bytes(b"part")
        os.utime(part, (age, age))
        if job is not live:
            container.jobs.transition(job, Change(), to=JobState.FAILED, failed_stage=Stage.DOWNLOAD)
    free[:] = [0, 0, *free]

    assert container.work_folder.clean() == 2

    assert {path.name for path in container.work_folder.ready().glob("*.part")} == {
        f"{live.id}.part",
        f"{newest.id}.part",
    }
    for job in (live, newest):
        container.work_folder.part_of(job.id).unlink()


def test_a_folder_that_a_killed_worker_left_is_removed_after_a_day(bench: Bench) -> None:
    work_dir = bench.container.work_folder.ready()
    old, new = (Path(tempfile.mkdtemp(dir=work_dir)) for _ in range(2))
    (old / "dataset.zip").write_bytes(b"a dataset")
    os.utime(old, (0, 0))
    assert bench.container.work_folder.clean() == 1
    assert [folder for folder in work_dir.iterdir() if folder in {old, new}] == [new]
    new.rmdir()

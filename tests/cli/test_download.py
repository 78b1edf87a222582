"""`finetune download`: what is printed, as text and as JSON, and the exit codes."""

import hashlib
from pathlib import Path

import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import JobRecord, JobState
from finetune_queue.contract.job import Weights
from finetune_queue.sdk import Job
from support.cli import Run, Worker

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What is stored of the job."""
    path = tmp_path / "store" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def job(worker: Worker, weights: Path) -> JobRecord:
    facts = Weights(url=weights.as_uri(), manifest_url="", bytes=len(CONTENT), sha256=SHA256, tensors=1)
    return worker.move(worker.bring(worker.accept(), JobState.DOWNLOADING), JobState.SUCCEEDED, weights=facts)


def test_a_download_says_where_the_weights_are(run: Run, job: JobRecord, tmp_path: Path) -> None:
    result = run("download", job.id)
    assert result.code == ExitCode.OK
    assert result.out == (
        f"The weights of job {job.id} are in {job.id}.safetensors.\n7 kB, verified: sha256 {SHA256}\n"
    )
    assert (tmp_path / f"{job.id}.safetensors").read_bytes() == CONTENT


def test_a_download_as_json(run: Run, job: JobRecord, weights: Path, tmp_path: Path) -> None:
    result = run("download", job.id, "mine", "--json")
    assert result.json == {
        "job_id": job.id,
        "path": str(tmp_path / "mine"),
        "url": weights.as_uri(),
        "bytes": len(CONTENT),
        "sha256": SHA256,
    }
    assert (tmp_path / "mine").read_bytes() == CONTENT


def test_a_folder_that_is_not_there_is_not_taken_for_a_file(
    run: Run, job: JobRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = run("download", job.id, "~/out/", "--json")
    assert (missing.code, missing.error["code"]) == (ExitCode.USAGE, "target")
    (tmp_path / "out").mkdir()
    assert run("download", job.id, "~/out/").code == ExitCode.OK
    assert (tmp_path / "out" / f"{job.id}.safetensors").read_bytes() == CONTENT


def test_another_file_takes_force(run: Run, job: JobRecord, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = run("download", job.id, "mine")
    assert result.code == ExitCode.USAGE
    assert result.err == "error: mine is another file. Name another target, or replace it by force (--force).\n"
    assert run("download", job.id, "mine", "--force").code == ExitCode.OK
    assert (tmp_path / "mine").read_bytes() == CONTENT


def test_weights_that_cannot_be_had(run: Run, worker: Worker, job: JobRecord, weights: Path) -> None:
    early = run("download", worker.bring(worker.accept(), JobState.TRAINING).id, "--json")
    assert (early.code, early.error["code"]) == (ExitCode.CONFLICT, "not_possible")
    weights.write_bytes(CONTENT[::-1])
    damaged = run("download", job.id, "--json")
    assert (damaged.code, damaged.error["code"]) == (ExitCode.FAILED, "weights_damaged")
    weights.unlink()
    gone = run("download", job.id, "--json")
    assert (gone.code, gone.error["code"]) == (ExitCode.UNAVAILABLE, "weights_unavailable")


def test_ctrl_c_says_that_nothing_was_kept(run: Run, job: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "download", interrupted)
    result = run("download", job.id)
    assert result.code == ExitCode.INTERRUPTED
    assert result.err == "stopped: Nothing was kept; the same command begins again.\n"

"""A job's weights as a file of the caller's: from a folder and from a real S3 API, whole and verified or not at all."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from finetune_queue import (
    FineTuneQueue,
    Job,
    NotPossibleError,
    TargetError,
    WeightsDamagedError,
    WeightsUnavailableError,
)
from finetune_queue.contract import JobState
from finetune_queue.contract.job import Weights
from finetune_queue.sdk import fetching
from finetune_queue.storage import Place
from support.cli import Worker
from support.rights import file_modes_count

CONTENT = os.urandom(3 << 20) + b"the end"


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The workers' artifact store; its folder has a name that a URL has to escape."""
    if request.param == "s3":
        return Place(f"s3://{request.getfixturevalue('bucket')}/some/prefix")
    return Place(f"file://{tmp_path}/the%20store")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def stored(queue: FineTuneQueue, worker: Worker, place: Place, *, content: bytes = CONTENT, **facts: Any) -> Job:
    """Return a job that has ended; ``facts`` are what it recorded, where that is not what is stored."""
    record = worker.bring(worker.accept(), JobState.DOWNLOADING)
    name = f"{record.id}/weights.safetensors"
    place.put_bytes(content, name)
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **facts}
    manifest_url = place.url_of(f"{record.id}/manifest.json")
    weights = Weights(url=place.url_of(name), manifest_url=manifest_url, tensors=1, **known)
    worker.move(record, JobState.SUCCEEDED, weights=weights)
    return queue.get(record.id)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_weights_come_whole_and_in_blocks(queue: FineTuneQueue, worker: Worker, place: Place, out: Path) -> None:
    job = stored(queue, worker, place)
    seen: list[tuple[int, int | None]] = []
    path = job.download(out / "a.safetensors", on_progress=lambda done, total: seen.append((done, total)))
    assert path == out / "a.safetensors"
    assert path.read_bytes() == CONTENT
    assert names(out) == ["a.safetensors"]
    assert [total for _, total in seen] == [len(CONTENT)] * 4
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_in_a_folder_they_are_named_after_the_job(
    queue: FineTuneQueue, worker: Worker, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stored(queue, worker, Place(f"file://{tmp_path}/store"))
    assert job.download(out) == out / f"{job.id}.safetensors"
    assert job.download(str(out)).read_bytes() == CONTENT
    monkeypatch.chdir(out)
    assert job.download() == Path(f"{job.id}.safetensors")
    assert names(out) == [f"{job.id}.safetensors"]


def test_what_is_there_already_is_not_fetched_again(
    queue: FineTuneQueue, worker: Worker, place: Place, out: Path
) -> None:
    job = stored(queue, worker, place)
    path = job.download(out)
    place._backend.delete(f"{job.id}/weights.safetensors")
    assert job.download(out) == job.download(out, force=True) == path


@pytest.mark.parametrize("content", [b"mine", bytes(len(CONTENT))], ids=["shorter", "as long"])
def test_another_file_is_replaced_by_force_alone(
    queue: FineTuneQueue, worker: Worker, place: Place, out: Path, content: bytes
) -> None:
    job = stored(queue, worker, place)
    path = out / "mine"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=f"{path} is another file. .*--force"):
        job.download(path)
    assert path.read_bytes() == content
    assert job.download(path, force=True).read_bytes() == CONTENT
    assert names(out) == ["mine"]


def test_a_job_that_has_ended_since_it_was_read(
    queue: FineTuneQueue, worker: Worker, tmp_path: Path, out: Path
) -> None:
    record = worker.bring(worker.accept(), JobState.DOWNLOADING)
    job = queue.get(record.id)
    with pytest.raises(NotPossibleError, match=rf"^Job {job.id} has no weights yet: it is downloading\.$"):
        job.download(out)
    place = Place(f"file://{tmp_path}/store")
    place.put_bytes(b"w", "weights.safetensors")
    weights = Weights(
        url=place.url_of("weights.safetensors"),
        manifest_url="",
        bytes=1,
        sha256=hashlib.sha256(b"w").hexdigest(),
        tensors=1,
    )
    worker.move(record, JobState.SUCCEEDED, weights=weights)
    assert job.download(out).read_bytes() == b"w"


def test_a_job_that_ended_without_weights(queue: FineTuneQueue, worker: Worker, out: Path) -> None:
    record = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING))
    with pytest.raises(NotPossibleError, match=rf"^Job {record.id} has no weights: it has failed\.$"):
        queue.get(record.id).download(out)
    assert names(out) == []


def test_weights_that_are_gone(queue: FineTuneQueue, worker: Worker, place: Place, out: Path) -> None:
    job = stored(queue, worker, place)
    place._backend.delete(f"{job.id}/weights.safetensors")
    with pytest.raises(WeightsUnavailableError) as caught:
        job.download(out)
    said = str(caught.value)
    assert f"The weights of job {job.id} are not at {place.url}/{job.id}/weights.safetensors: " in said
    assert ("mount it here under the same path" in said) == place.url.startswith("file:")
    assert names(out) == []


def test_a_store_that_refuses(queue: FineTuneQueue, worker: Worker, tmp_path: Path, out: Path) -> None:
    job = stored(queue, worker, Place(f"file://{tmp_path}/store"))
    weights = tmp_path / "store" / job.id / "weights.safetensors"
    weights.chmod(0o000)
    with file_modes_count(), pytest.raises(WeightsUnavailableError) as caught:
        job.download(out)
    assert str(caught.value) == (
        f"The weights of job {job.id} cannot be read from here: {weights} may not be used by this user "
        "(Permission denied). Check its owner and mode."
    )
    assert names(out) == []


@pytest.mark.parametrize(
    "damage",
    [
        ({"sha256": "ab" * 32}, f"the sha256 {hashlib.sha256(CONTENT).hexdigest()}, not {'ab' * 32}"),
        ({"bytes": 5}, f"{len(CONTENT):,} bytes, not 5"),
        ({"bytes": 5_000_000}, f"{len(CONTENT):,} bytes, not 5,000,000"),
    ],
    ids=["another", "longer", "shorter"],
)
def test_what_is_not_what_the_job_stored_is_not_kept(
    queue: FineTuneQueue, worker: Worker, place: Place, out: Path, damage: tuple[dict[str, Any], str]
) -> None:
    facts, said = damage
    job = stored(queue, worker, place, **facts)
    (out / "mine").write_bytes(b"mine")
    with pytest.raises(WeightsDamagedError, match=f"is not what job {job.id} stored: it has {said}"):
        job.download(out / "mine", force=True)
    assert names(out) == ["mine"]
    assert (out / "mine").read_bytes() == b"mine"


def test_a_target_that_cannot_be_written(queue: FineTuneQueue, worker: Worker, tmp_path: Path, out: Path) -> None:
    job = stored(queue, worker, Place(f"file://{tmp_path}/store"))
    for target in (f"{out}/none/", out / "none" / "weights"):
        with pytest.raises(TargetError, match=f"There is no folder {out / 'none'}. Make it"):
            job.download(target)
    os.mkfifo(out / "pipe")
    with pytest.raises(TargetError, match="is there and is no file"):
        job.download(out / "pipe", force=True)
    (out / "dangling").symlink_to("nowhere")
    with pytest.raises(TargetError, match="is there and is no file"):
        job.download(out / "dangling")
    out.chmod(0o500)
    with file_modes_count(), pytest.raises(TargetError, match=r"cannot be written: .* \(Permission denied\)"):
        job.download(out)
    out.chmod(0o700)
    assert names(out) == ["dangling", "pipe"]


def test_a_download_that_is_interrupted_leaves_nothing(
    queue: FineTuneQueue, worker: Worker, place: Place, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_BLOCK", 1000)
    job = stored(queue, worker, place)

    def interrupt(done: int, _total: int | None) -> None:
        if done >= 5000:
            assert len(names(out)) == 1  # under a name that nobody takes for the weights
            assert names(out)[0].startswith(".")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.download(out, on_progress=interrupt)
    assert names(out) == []


def test_what_on_progress_raises_is_no_error_of_the_file(
    queue: FineTuneQueue, worker: Worker, place: Place, out: Path
) -> None:
    """A TimeoutError is an OSError, as those of files are."""
    job = stored(queue, worker, place)

    def too_long(_done: int, _total: int | None) -> None:
        message = "enough"
        raise TimeoutError(message)

    with pytest.raises(TimeoutError, match="enough"):
        job.download(out, on_progress=too_long)
    assert names(out) == []

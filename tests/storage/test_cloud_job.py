"""One job by real processes with everything in a bucket: the dataset, the staging store and the weights."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.storage import Place
from support.clouds import CLOUDS, Store
from support.images import make_dataset_folder, make_dataset_zip
from support.samples import sample


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_job_from_bucket_to_bucket(cloud: str, make_store: Callable[[str], Store], tmp_path: Path) -> None:
    store = make_store(cloud)
    staging, artifacts, datasets = f"{store.url}/staging", f"{store.url}/artifacts", f"{store.url}/datasets"
    settings = {
        "FINETUNE_STAGING_URL": staging,
        "FINETUNE_ARTIFACT_URL": artifacts,
        "FINETUNE_DATASET_BUCKETS": datasets,
    }
    make_dataset_folder(tmp_path / "images", count=6)
    make_dataset_zip(tmp_path / "a.zip", count=6)
    Place(datasets).put_file(tmp_path / "a.zip", "a b.zip")
    sandbox = {"SANDBOX_TRAINING_SECONDS": "0.5", "SANDBOX_WEIGHTS_BYTES": "20000000"}
    with (
        LocalStack(tmp_path / "stack", workers=1, rate_limit="50/1", sandbox=sandbox, settings=settings) as stack,
        FineTuneQueue(stack.settings) as queue,
    ):
        jobs = [queue.submit(sample(dataset=each)) for each in (str(tmp_path / "images"), f"{datasets}/a b.zip")]
        ended = [job.wait(60) for job in jobs]
    for job in ended:
        assert job.state is JobState.SUCCEEDED, job.record.error
        weights = job.record.weights
        assert weights is not None
        assert weights.url == f"{artifacts}/{job.id}/weights.safetensors"
        with Place(artifacts).open_read(f"{job.id}/weights.safetensors") as file:
            assert hashlib.sha256(file.read()).hexdigest() == weights.sha256
        with Place(artifacts).open_read(f"{job.id}/manifest.json") as file:
            assert json.load(file)["dataset"]["images"] == 6

"""A job that also waits until Segmind has deployed its model: what looks at Segmind then mean for it."""

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.storage import UnavailableError
from finetune_worker.stages.sweep import sweep
from support.bench import Bench
from support.until import until


@pytest.fixture
def deploying(bench: Bench) -> JobRecord:
    """A job whose weights are stored and whose model is not deployed yet."""
    bench.sandbox.control.change_settings(list_carries_weights_url=True, deploy_seconds=600)
    job = bench.submitting(wait_for="available")
    bench.run(job)

    def trained() -> bool:
        sweep(bench.container, "default")
        return bench.read(job).state is JobState.DOWNLOADING

    until(trained, seconds=10)
    bench.run(job)
    assert bench.read(job).state is JobState.DEPLOYING
    return bench.read(job)


def test_a_deployed_job_is_looked_at_no_more(
    bench: Bench, deploying: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sandbox.control.change_training(bench.finetune_id(deploying), finish=True)
    sweep(bench.container, "default")
    deployed = bench.read(deploying)
    assert (deployed.stage, deployed.deployed, deployed.tracked) == (Stage.PUBLISH, True, False)
    assert bench.container.accounts.status("default").tracked == 0

    def away(*_: object) -> None:
        raise UnavailableError("The store is away.")

    monkeypatch.setattr(bench.container.artifacts, "put_bytes", away)
    bench.run(deploying)
    waiting = bench.read(deploying)

    assert sweep(bench.container, "default") == "no trainings to look at"
    assert bench.read(deploying) == waiting

"""A stage's task in its chain: the next link follows only a stage that is done."""

from pathlib import Path
from typing import Any

import pytest

from finetune_queue.contract import new_job_id
from finetune_queue.messaging import stage_task
from finetune_queue.settings import Settings
from finetune_worker.celery import create_app
from finetune_worker.stages.conclude import StageResult
from finetune_worker.tasks import STAGES


@pytest.mark.parametrize("proceed", [True, False])
def test_a_chain_ends_with_a_stage_that_parks(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, proceed: bool
) -> None:
    monkeypatch.setattr("finetune_worker.tasks.run_stage", lambda *_, **__: StageResult("said", proceed=proceed))
    app: Any = create_app(
        Settings(
            finetune_redis_url=redis_url,
            segmind_api_key="SG_0123456789abcdef",
            finetune_artifact_url=f"file://{tmp_path}",
        )
    )
    for stage in STAGES:
        task = app.tasks[stage_task(stage)]
        task.push_request(id="a-task", chain=["the next link"])
        assert task.run(new_job_id()) == "said"
        assert bool(task.request.chain) is proceed  # what Celery sends when the task has ended
        task.pop_request()
    app.finetune.container.close()

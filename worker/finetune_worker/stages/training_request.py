"""What Segmind is asked for when a job is submitted (Fast Flux API, section 1)."""

from pydantic import JsonValue

from finetune_queue.contract import JobRecord
from finetune_worker.segmind.models import SubmitRequest


def training_request(job: JobRecord) -> SubmitRequest:
    """Return the body of the job's submit. Jobs with equal bodies may have each other's training."""
    request = job.request
    return SubmitRequest(
        name=request.name,
        data_source_path=job.dataset_url or "",
        instance_prompt=request.instance_prompt,
        trigger_word=request.trigger_word,
        base_model=request.base_model,
        theme=request.theme,
        segmind_public=request.segmind_public,
        advance_parameters=_whole_steps(request.advance_parameters),
    )


def _whole_steps(parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the parameters with ``steps`` as the page has them: JavaScript knows no difference between 2000 and
    2000.0, an API that wants an integer may."""
    steps = parameters.get("steps")
    return {**parameters, "steps": int(steps)} if isinstance(steps, float) and steps.is_integer() else parameters

"""What Segmind is asked for when a job is submitted (Fast Flux API, section 1)."""

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
        advance_parameters=request.advance_parameters,
    )

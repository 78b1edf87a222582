"""Requests that tests submit."""

from typing import Any

from finetune_queue.contract import FineTuneRequest


def sample(**fields: Any) -> dict[str, Any]:
    """Return a request as JSON that is fine as it is; ``fields`` replace or add."""
    body = {
        "name": "a-face",
        "instance_prompt": "photo of 1MAN",
        "trigger_word": "1MAN",
        "dataset": "https://example.com/faces.zip",
    }
    return body | fields


def sample_request(**fields: Any) -> FineTuneRequest:
    """Return the same as a checked request."""
    return FineTuneRequest.model_validate(sample(**fields))

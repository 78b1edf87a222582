"""The trace that a message carries beside its event."""

from finetune_queue.contract import Event


def trace_headers(event: Event) -> dict[str, str]:
    """Return the header by which a consumer's OpenTelemetry continues the job's trace: it does not look into events.
    Empty for a job that is not traced."""
    return {} if event.traceparent is None else {"traceparent": event.traceparent}

"""Tracing with OpenTelemetry: what is done for a job, as spans of the job's one trace. docs/tracing.md shows it.

All of it does nothing until spans have somewhere to go, and OpenTelemetry is not imported before. Attributes are ids,
names, numbers and codes: no prompts, URLs or keys.
"""

from finetune_queue.tracing.export import running, start, stop
from finetune_queue.tracing.spans import (
    ACCOUNT,
    JOB,
    Attributes,
    continued,
    each_in_its_own,
    failed,
    link,
    past,
    span,
    tell,
    trace_id,
    traceparent,
)

__all__ = [
    "ACCOUNT",
    "JOB",
    "Attributes",
    "continued",
    "each_in_its_own",
    "failed",
    "link",
    "past",
    "running",
    "span",
    "start",
    "stop",
    "tell",
    "trace_id",
    "traceparent",
]

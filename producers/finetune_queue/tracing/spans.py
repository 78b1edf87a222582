"""Spans and the context that they pass on. While tracing is off each function here returns at once."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from finetune_queue.tracing.export import tracer

if TYPE_CHECKING:
    from opentelemetry.context import Context

JOB = "finetune.job.id"
ACCOUNT = "finetune.account"

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]


@contextmanager
def span(
    name: str, *, kind: Kind = "internal", parent: str | None = None, attributes: Attributes | None = None
) -> Iterator[None]:
    """Record what the block, or as a decorator the function, does. An exception marks the span by its type alone.

    Args:
        name: One of few: what differs from job to job belongs into the attributes.
        parent: The W3C ``traceparent`` of what this is a part of; None: the current span, if any.
    """
    recorder = tracer()
    if recorder is None:
        yield
        return
    from opentelemetry.trace import use_span

    made = recorder.start_span(name, _context(parent), kind=_kind(kind), attributes=attributes)
    with use_span(made, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            failed(type(error).__name__)
            raise


def tell(attributes: Attributes, *, name: str | None = None) -> None:
    """Add attributes to the current span and, with ``name``, rename it."""
    if tracer() is None:
        return
    current = _current()
    current.set_attributes(attributes)
    if name is not None:
        current.update_name(name)


def failed(kind: str) -> None:
    """Mark the current span as failed; ``kind`` is a stable code, or the name of a class."""
    if tracer() is not None:
        _mark_failed(_current(), kind)


def link(other: str | None) -> None:
    """Link the current span to the one that ``other``, a ``traceparent``, names; None does nothing."""
    if other is not None and tracer() is not None:
        _current().add_link(_current(_context(other)).get_span_context())


def past(
    name: str, seconds: float, *, kind: Kind = "internal", attributes: Attributes, error: str | None = None
) -> None:
    """Record a span that ends now and began ``seconds`` ago, as a child of the current one. ``error`` marks it failed,
    see :func:`failed`."""
    recorder = tracer()
    if recorder is None:
        return
    end = time.time_ns()
    made = recorder.start_span(name, kind=_kind(kind), attributes=attributes, start_time=end - int(seconds * 1e9))
    if error is not None:
        _mark_failed(made, error)
    made.end(end)


@contextmanager
def each_in_its_own(name: str, job_ids: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Record the block once for each of many jobs, as the root of its own trace with a link to the current span.

    Yields:
        The ``traceparent`` of each job; none while tracing is off.
    """
    recorder = tracer()
    if recorder is None:
        yield {}
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, set_span_in_context

    around = _current().get_span_context()
    links = [Link(around)] if around.is_valid else []
    made = {
        job_id: recorder.start_span(name, Context(), kind=_kind("producer"), links=links, attributes={JOB: job_id})
        for job_id in job_ids
    }
    texts = {job_id: _text(set_span_in_context(each)) for job_id, each in made.items()}
    try:
        yield {job_id: text for job_id, text in texts.items() if text is not None}
    finally:
        for each in made.values():
            each.end()


def traceparent() -> str | None:
    """Return the current span as a W3C ``traceparent``; None without one."""
    return None if tracer() is None else _text(None)


def trace_id() -> str | None:
    """Return the id of the current trace, in hex; None without one."""
    found = traceparent()
    return None if found is None else found.split("-")[1]


@contextmanager
def continued(incoming: object) -> Iterator[None]:
    """Make ``incoming``, the W3C ``traceparent`` of a message, the parent of the spans in the block. With an invalid
    text they have no parent; anything but a text changes nothing."""
    if not isinstance(incoming, str) or tracer() is None:
        yield
        return
    from opentelemetry.context import attach, detach

    token = attach(_context(incoming))
    try:
        yield
    finally:
        detach(token)


def _text(context: "Context | None") -> str | None:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context)
    return carrier.get("traceparent")


def _context(parent: str | None) -> "Context":
    from opentelemetry.context import get_current
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if parent is None:
        return get_current()
    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _current(context: "Context | None" = None) -> Any:
    from opentelemetry.trace import get_current_span

    return get_current_span(context)


def _kind(kind: Kind) -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.upper()]


def _mark_failed(made: Any, kind: str) -> None:
    from opentelemetry.trace import StatusCode

    made.set_attribute("error.type", kind)
    made.set_status(StatusCode.ERROR)

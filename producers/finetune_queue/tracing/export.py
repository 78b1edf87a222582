"""Where spans go: set up once in a process, from OpenTelemetry's own environment variables."""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from finetune_queue import __version__
from finetune_queue.redaction import register_secrets

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

log = structlog.wrap_logger(logging.getLogger(__name__))

FLUSH = 2.0
"""Seconds that a process which ends gives its last spans to reach the collector."""

_SCOPE = "finetune_queue"

_own: "tuple[TracerProvider, Tracer] | None" = None
"""What `start` made, until `stop`."""


def start(service: str) -> None:
    """Send this process's spans to where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says, if it is set.

    Call it after a fork, never before: the thread that sends them does not outlive one.

    Args:
        service: What the process is called where ``OTEL_SERVICE_NAME`` does not say so.
    """
    global _own  # noqa: PLW0603 - a process has one, as it has one current span
    if _own is not None or not _wanted():
        return
    reason = _unsupported()
    if reason is None:
        try:
            provider = _make_provider(service)
        except ImportError as error:
            reason = f"{error.name} is not installed: pip install 'finetune-queue[otel]'"
        else:
            _own = provider, provider.get_tracer(_SCOPE, __version__)
            return
    log.warning("tracing_off", reason=reason)


def stop() -> None:
    """Send what is left, within :data:`FLUSH`, and record no more."""
    global _own
    if _own is None:
        return
    provider, _own = _own[0], None
    # In a thread, since the SDK would wait half a minute for a collector that is away.
    last = threading.Thread(target=provider.shutdown, name="tracing-flush", daemon=True)
    last.start()
    last.join(FLUSH)


@contextmanager
def running(service: str) -> Iterator[None]:
    """Trace this process while the block runs, see :func:`start`."""
    start(service)
    try:
        yield
    finally:
        stop()


def tracer() -> "Tracer | None":
    """Return what records spans: this process's own, or that of the program that uses the SDK; None without any."""
    if _own is not None:
        return _own[1]
    trace = sys.modules.get("opentelemetry.trace")  # a program that records spans has imported it
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    found: Tracer = trace.get_tracer(_SCOPE, __version__)
    return found


def _wanted() -> bool:
    endpoint = _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _variable("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = _variable("OTEL_TRACES_EXPORTER") == "none" or _variable("OTEL_SDK_DISABLED").lower() == "true"
    return bool(endpoint) and not off


def _unsupported() -> str | None:
    exporter = _variable("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER={exporter} is not supported, only otlp or none"
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _variable("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {"", "http/protobuf"}:
        return f"the OTLP protocol {protocol} is not supported, only http/protobuf (a collector's port 4318)"
    return None


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _header_values() -> list[str]:
    """Return the values of the headers for the collector, which may be credentials; of a header without a
    value, which is not valid, its name."""
    named = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
    pairs = [pair.strip() for name in named for pair in _variable(name).split(",") if pair.strip()]
    return [value.strip() or name for name, _, value in (pair.partition("=") for pair in pairs)]


class _Outage(logging.Filter):
    """Lets one line of the exporter's through in each outage, and not several for each batch of spans."""

    told = False

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the library's signature
        first, self.told = not self.told, True
        return first


_outage = _Outage()


def _make_provider(service: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    register_secrets(_header_values())  # the SDK logs a header that it cannot read
    logging.getLogger(trace_exporter.__name__).addFilter(_outage)

    class Exporter(trace_exporter.OTLPSpanExporter):
        """Tells when an outage is over."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = super().export(spans)
            if result is SpanExportResult.SUCCESS and _outage.told:
                _outage.told = False
                log.info("spans_exported_again")
            return result

    resource = Resource.create({SERVICE_VERSION: __version__})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Exporter()))
    return provider

"""An OpenTelemetry collector on loopback: takes OTLP over HTTP and keeps what it was sent, bytes and spans."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.until import until
from support.web import Web


@dataclass(frozen=True)
class Seen:
    """A span as it was sent; ``links`` are the ids of the traces that it names."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: bool
    nanoseconds: int


class Collector:
    """Give its ``env`` to the processes that are to be traced."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._web = self._make(0)
        self._running = ExitStack()
        self._running.enter_context(self._web)

    def _make(self, port: int) -> Web:
        return Web({"/v1/traces": self._take}, port=port)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        assert handler.headers["Content-Type"] == "application/x-protobuf"
        self.bodies.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        handler.close_connection = True  # or a kept connection would outlive the server

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self._web.url(""), "OTEL_BSP_SCHEDULE_DELAY": "50"}

    @property
    def spans(self) -> list[Seen]:
        return [span for body in list(self.bodies) for span in _read(body)]

    def wait_for(self, trace_id: str, *names: str, seconds: float = 20) -> list[Seen]:
        """Return the trace once it has spans of these names."""

        def trace() -> list[Seen]:
            return [span for span in self.spans if span.trace_id == trace_id]

        until(lambda: set(names) <= {span.name for span in trace()}, seconds=seconds)
        return trace()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections while the block runs."""
        port = self._web.port
        self._running.close()
        try:
            yield
        finally:
            self._web = self._running.enter_context(self._make(port))

    def close(self) -> None:
        self._running.close()


def _read(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    service=about["service.name"],
                    name=span.name,
                    kind=span.kind,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes=_attributes(span.attributes),
                    links=tuple(link.trace_id.hex() for link in span.links),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    nanoseconds=span.end_time_unix_nano - span.start_time_unix_nano,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}

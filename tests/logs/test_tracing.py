"""What tracing brings into the log, and what of it must stay out."""

from collections.abc import Callable, Iterator

import pytest
import structlog

from finetune_queue import tracing
from logs.conftest import Logs

KEY = "sesame-open-7"


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Starts tracing with these variables; nobody listens."""

    def start(**more: str) -> None:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **more}.items():
            monkeypatch.setenv(name, value)
        tracing.start("tests")

    yield start
    tracing.stop()


def test_a_line_names_its_trace(configured: Callable[..., Logs], start: Callable[..., None]) -> None:
    logs = configured()
    start(OTEL_TRACES_SAMPLER="always_off")  # lines of a trace belong together all the same
    with tracing.span("doing"):
        structlog.get_logger("finetune_queue").info("inside")
        found = tracing.trace_id()
    assert logs.last["trace_id"] == found
    structlog.get_logger("finetune_queue").info("outside")
    assert "trace_id" not in logs.last


@pytest.mark.parametrize("headers", [f"api-key={KEY}", KEY, f"a=b,api key={KEY}", f"api-key={KEY}%20=x"])
def test_a_collector_s_key_is_in_no_line(
    configured: Callable[..., Logs], start: Callable[..., None], headers: str
) -> None:
    logs = configured()
    start(OTEL_EXPORTER_OTLP_HEADERS=headers)  # one that it cannot read the SDK shows
    structlog.get_logger("finetune_queue").info("told", headers=headers)
    assert KEY not in logs.text

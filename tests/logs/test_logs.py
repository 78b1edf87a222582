"""Every record of the process goes through one pipeline and comes out as one line."""

import io
import logging
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from billiard.einfo import ExceptionInfo

from finetune_queue.logs import configure_logging
from finetune_queue.settings import Settings, SettingsError, load_settings
from finetune_worker.celery import create_app

log = structlog.get_logger("finetune_queue.early")  # as modules do: at import, before any set-up


def _fail(message: str, *, because: Exception | None = None) -> None:
    hidden = f"local-{6 * 7}-value"  # would be in the line if local variables were
    assert hidden
    raise RuntimeError(message) from because


def test_an_event_is_one_json_object_with_its_fields(configured: Callable[..., Any]) -> None:
    logs = configured()
    log.info("stage_ended", job_id="j1", seconds=1.5, nothing=None, numbers=(1, 2))
    line = logs.last
    assert list(line)[:4] == ["timestamp", "level", "event", "logger"]
    said = datetime.fromisoformat(line.pop("timestamp"))
    assert said.utcoffset() is not None
    assert abs((datetime.now(UTC) - said).total_seconds()) < 60
    assert line == {
        "level": "info",
        "event": "stage_ended",
        "logger": "finetune_queue.early",
        "job_id": "j1",
        "seconds": 1.5,
        "nothing": None,
        "numbers": [1, 2],
    }


def test_fields_of_the_context_are_on_each_line_also_of_other_libraries(configured: Callable[..., Any]) -> None:
    logs = configured()
    with structlog.contextvars.bound_contextvars(job_id="j1", stage="submit", account="default"):
        log.info("inside")
        logging.getLogger("urllib3.connectionpool").warning("Retrying %s", "later")
    log.info("outside")
    ours, theirs, after = logs.lines
    for line in (ours, theirs):
        assert (line["job_id"], line["stage"], line["account"]) == ("j1", "submit", "default")
    assert (theirs["event"], theirs["logger"], theirs["level"]) == (
        "Retrying later",
        "urllib3.connectionpool",
        "warning",
    )
    assert "job_id" not in after


def test_a_task_without_a_job_is_not_told_of_as_the_one_before_it(configured: Callable[..., Any]) -> None:
    logs = configured()
    app = create_app(Settings())
    with structlog.contextvars.bound_contextvars(job_id="j1", stage="submit"):  # as the last task on a thread left them
        failed = app.tasks["finetune.sweep"].apply(args=())
    assert isinstance(failed.result, SettingsError)  # no account: it cannot even set its message aside
    assert "raised unexpected" in logs.last["event"]
    assert logs.last["task_id"] == failed.id
    assert logs.last.keys().isdisjoint({"job_id", "stage"})


def test_exceptions_are_fields_without_local_variables(configured: Callable[..., Any]) -> None:
    logs = configured()
    try:
        try:
            _fail("inner")
        except RuntimeError as error:
            _fail("outer", because=error)
    except RuntimeError:
        log.exception("stage_failed")
        logging.getLogger("elsewhere").exception("theirs too")
    assert "local-42-value" not in logs.text
    for line in logs.lines:
        outer, inner = line["exception"]
        assert (outer["exc_type"], outer["exc_value"]) == ("RuntimeError", "outer")
        assert (inner["exc_value"], inner["is_cause"]) == ("inner", True)
        assert outer["frames"][-1]["name"] == "_fail"


def test_an_exception_that_celery_brings_from_a_child_process_is_shown(configured: Callable[..., Any]) -> None:
    logs = configured()
    try:
        _fail("in the pool")
    except RuntimeError:
        info = ExceptionInfo()
    record = {"id": "t1", "name": "finetune.poll"}
    logging.getLogger("celery.app.trace").error(
        "Task %(name)s[%(id)s] raised", record, exc_info=info.exc_info, extra={"data": record}
    )
    line = logs.last
    assert line["event"] == "Task finetune.poll[t1] raised"
    assert (line["task_id"], line["task"]) == ("t1", "finetune.poll")
    assert "in the pool" in line["exception"][0]["exc_value"]


def test_a_library_that_set_its_own_logging_up_is_brought_back(configured: Callable[..., Any]) -> None:
    elsewhere = io.StringIO()
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.StreamHandler(elsewhere))
    access.propagate = False
    access.setLevel(logging.NOTSET)  # a server in an earlier test of this process may have made it quieter
    logs = configured()
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/x?sig=abcdefgh", "1.1", 200)
    assert logs.last["event"] == '127.0.0.1:5 - "GET /x?sig=[redacted] HTTP/1.1" 200'
    assert elsewhere.getvalue() == ""


def test_set_up_twice_still_writes_each_line_once(configured: Callable[..., Any]) -> None:
    first, second = configured(), configured()
    log.info("once")
    assert first.text == ""
    assert len(second.lines) == 1


def test_the_level_holds_for_us_and_debug_stays_quiet_about_others(configured: Callable[..., Any]) -> None:
    logs = configured(FINETUNE_LOG_LEVEL="DEBUG")
    log.debug("ours")
    logging.getLogger("finetune_worker.stages").debug("ours, too")
    logging.getLogger("botocore.hooks").debug("not theirs")
    assert [line["event"] for line in logs.lines] == ["ours", "ours, too"]
    logs = configured(FINETUNE_LOG_LEVEL="WARNING")
    log.info("unheard")
    logging.getLogger("celery").info("unheard")
    log.warning("heard")
    assert [line["event"] for line in logs.lines] == ["heard"]


def test_warnings_are_log_lines(configured: Callable[..., Any]) -> None:
    logs = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert logs.last["logger"] == "py.warnings"
    assert "old thing" in logs.last["event"]


def test_what_json_cannot_hold_is_still_one_valid_line(configured: Callable[..., Any]) -> None:
    logs = configured()

    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    loop: dict[str, Any] = {}
    loop["self"] = loop
    log.info("odd", rude=Rude(), nan=float("nan"), raw=b"\xff\x00", loop=loop, keys={(1, 2): {3}}, path=object)
    assert len(logs.text.splitlines()) == 1
    line = logs.last
    assert line["rude"] == "<Rude whose repr raised RuntimeError>"
    assert (line["nan"], line["raw"]) == ("nan", "\\xff\x00")
    assert line["keys"] == {"(1, 2)": [3]}


def test_a_record_with_wrong_arguments_is_told_without_them(
    configured: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    logs = configured()
    logging.getLogger("careless").info("one %s and %s", "SG_not_ours_but_secret")  # noqa: PLE1206 - the fault under test
    assert logs.last["event"] == "unreadable_log_record: one %s and %s (TypeError)"
    assert capsys.readouterr() == ("", "")
    assert "SG_not_ours_but_secret" not in logs.text


def test_a_stream_that_fails_is_told_on_stderr_without_the_record(
    configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    configured()
    configure_logging(load_settings({}), stream=Full())
    last_resort = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", last_resort)
    log.info("lost", detail="only-here")
    assert "a log line of finetune_queue.early was lost" in last_resort.getvalue()
    assert "only-here" not in last_resort.getvalue()


def test_nothing_in_the_console_form_steers_the_terminal(configured: Callable[..., Any]) -> None:
    logs = configured(FINETUNE_LOG_FORMAT="console")
    clears = "\x1b[2J\x9b31m\x07"
    log.warning("message_rejected", message_id=clears, problems=[clears], **{clears: 1})
    logging.getLogger("celery.worker").error("Received %s\nof two lines", clears)
    try:
        _fail(clears)
    except RuntimeError:
        log.exception("crashed")
    assert logs.text.count("\\x1b[2J\\x9b31m\\x07") == 5
    assert not any(character in logs.text for character in "\x1b\x9b\x07")
    assert "\nof two lines" in logs.text


def test_the_console_form_is_for_reading_and_redacts_as_well(configured: Callable[..., Any]) -> None:
    logs = configured(FINETUNE_LOG_FORMAT="console")
    try:
        _fail("redis://:hunter2@host/0 is gone")
    except RuntimeError:
        log.exception("stage_failed", job_id="j1")
    assert "stage_failed" in logs.text
    assert "job_id=j1" in logs.text
    assert "RuntimeError: redis://:[redacted]@host/0 is gone" in logs.text
    assert "\x1b[" not in logs.text, "colours are for terminals"

"""One pipeline for every log line: structlog's and the standard library's, ours, Celery's and other libraries'.

Fields bound with `structlog.contextvars` (job_id, stage, account, task_id, finetune_id) are on each line of their
context, and `trace_id` where there is a trace. Redaction is the last step before a line is rendered, so nothing added
earlier escapes it.
"""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from finetune_queue import tracing
from finetune_queue.plain_words import escaped, escaped_lines
from finetune_queue.redaction import redact, register_secrets
from finetune_queue.settings import Settings

_OUR_LOGGERS = ("finetune_queue", "finetune_worker", "segmind_sandbox")
_FIRST = ("timestamp", "level", "event", "logger")


def configure_logging(settings: Settings, *, stream: TextIO | None = None) -> None:
    """Send every log line of this process through the pipeline, in the place of any earlier set-up.

    Args:
        settings: The format, the level (other libraries never say more than INFO) and the secrets to keep out.
        stream: Where lines go; None: stderr.
    """
    register_secrets(settings.secret_values)
    handler = _Handler(stream or sys.stderr)
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _trace_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*before, _celery_task],
            processors=[ProcessorFormatter.remove_processors_meta, *_rendering(settings, handler.stream)],
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *before,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # loggers are made at import, before the settings are known
    )
    _take_over(handler, logging.getLevelNamesMapping()[settings.finetune_log_level])


def _rendering(settings: Settings, stream: TextIO) -> list[Processor]:
    if settings.finetune_log_format == "json":
        as_fields = ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(as_fields),
            _redact_event,
            structlog.processors.JSONRenderer(),
        ]
    return [
        structlog.processors.format_exc_info,  # here, not in the renderer: it has to be text before redaction
        _redact_event,
        _escape_event,
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False),
    ]


def _take_over(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.INFO))
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):  # not a placeholder
            logger.handlers.clear()
            logger.propagate = True
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=True)


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The last step before rendering; also puts the fields that a reader looks for first."""
    ordered = {**{name: event[name] for name in _FIRST if name in event}, **event}
    redacted: EventDict = redact(ordered)
    return redacted


def _escape_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape the control characters in a line for a terminal, which could steer it: ids and messages come from clients
    and servers. Of lists and the like the renderer shows the repr, in which they are escaped."""
    return {escaped(name): escaped_lines(value) if isinstance(value, str) else value for name, value in event.items()}


def _trace_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Name the trace that the line belongs to, where there is one."""
    found = tracing.trace_id()
    if found is not None:
        event["trace_id"] = found
    return event


def _celery_task(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Name the task in records that Celery logs of a task from outside of its context, as of one that was received."""
    data = getattr(event["_record"], "data", None)
    if isinstance(data, dict) and event["logger"].startswith("celery."):
        event.setdefault("task_id", data.get("id"))
        event.setdefault("task", data.get("name"))
    return event


class _Handler(logging.StreamHandler[TextIO]):
    """A handler that never shows a record's raw arguments, as the standard one does with a record it cannot format."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001 - a bad log call must not hurt the program, nor vanish
            told = logging.makeLogRecord(
                {
                    "name": record.name,
                    "levelno": record.levelno,
                    "levelname": record.levelname,
                    "msg": f"unreadable_log_record: {record.msg} ({type(error).__name__})",
                }
            )
            return super().format(told)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say that a line could not be written; the standard report would hold the record's arguments."""
        if sys.__stderr__ is not None:
            with suppress(OSError, ValueError):  # there is nowhere left to tell
                sys.__stderr__.write(f"a log line of {record.name} was lost: {sys.exc_info()[0]}\n")

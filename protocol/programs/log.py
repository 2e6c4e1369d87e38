"""Structured logs, set up once per program: events are constant names with fields.

The same job id is a field in every process that a job passes through, so that one `grep` shows
its whole path. What must never be written is dropped here, whoever tries to log it: logs are
copied into bug reports.
"""

import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO

import structlog

from protocol.ids import JobId

# Names of fields that hold secrets or a customer's content.
SECRET_FIELDS = frozenset(
    {
        "api_key",
        "authorization",
        "content",
        "messages",
        "password",
        "payload",
        "prompt",
        "secret",
        "seed",
        "text",
        "token",
    }
)
HIDDEN = "[hidden]"

LEVELS = ("debug", "info", "warning", "error")

_Event = MutableMapping[str, Any]


class LogFormat(StrEnum):
    """For people at a terminal, or for programs that collect logs."""

    CONSOLE = "console"
    JSON = "json"


def configure_logging(
    *, level: str, log_format: LogFormat, stream: TextIO | None = None, stamped: bool = True
) -> None:
    """Set up structlog, and the standard library's logging of the packages that we use.

    `stamped=False` leaves out wall-clock times, so that two runs of one seed log the same bytes.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    output = stream if stream is not None else sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        hide_secrets,
    ]
    if stamped:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    final = _final_processors(log_format, colors=output.isatty())
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
            foreign_pre_chain=shared,
        )
    )
    # Libraries log what they survive as errors; their chatter below that helps nobody but them.
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.ERROR))


def bind_job(job_id: JobId) -> None:
    """Everything that this task logs from here on carries the job's id. For tasks of one job."""
    structlog.contextvars.bind_contextvars(job_id=job_id)


def hide_secrets(_logger: Any, _method: str, event: _Event) -> _Event:
    """The processor that drops secrets; bytes become their length, which is all a reader needs."""
    for name, value in event.items():
        if name in SECRET_FIELDS:
            event[name] = HIDDEN
        elif isinstance(value, bytes | bytearray | memoryview):
            event[name] = f"<{len(value)} bytes>"
    return event


def _final_processors(log_format: LogFormat, *, colors: bool) -> list[structlog.typing.Processor]:
    # Tracebacks are plain text: richer renderers show local variables, which are keys and prompts.
    if log_format is LogFormat.JSON:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
    ]

"""Structured logs, set up once per program: events are constant names with fields.

The same job id is a field in every process that a job passes through, so that one `grep` shows
its whole path. What must never be written is dropped here, for every logger: logs are
copied into bug reports.
"""

import io
import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from protocol.ids import JobId
from protocol.programs.log_format import LogFormat
from protocol.programs.log_limits import StrangersLines
from protocol.text import LOG_CHARS_MAX, printable

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
_BYTES = (bytes, bytearray, memoryview)

# A traceback of a deep call, or of a group of errors; a message of a peer's could be any length.
TRACEBACK_CHARS_MAX = 20_000

_Event = MutableMapping[str, Any]


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
        escape_text,
    ]
    if stamped:
        shared.insert(0, StrangersLines(time.monotonic))
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    final = _final_processors(log_format, colors=output.isatty())
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
            foreign_pre_chain=shared,
        )
    )
    # Libraries log what they survive as errors; their chatter below that helps only their authors.
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
        elif isinstance(value, _BYTES):
            event[name] = f"<{len(value)} bytes>"
    return event


def escape_text(_logger: Any, _method: str, event: _Event) -> _Event:
    """The processor that makes each event one line, whatever peers put into names and errors."""
    for name, value in event.items():
        event[name] = _escaped(value, depth_left=3)
    return event


def _escaped(value: Any, *, depth_left: int) -> Any:
    if isinstance(value, str):
        is_plain = len(value) <= LOG_CHARS_MAX and value.isprintable()
        return value if is_plain else printable(value, chars_max=LOG_CHARS_MAX)
    if isinstance(value, list | tuple) and depth_left:
        return [_escaped(item, depth_left=depth_left - 1) for item in value]
    if isinstance(value, dict) and depth_left:
        return {
            _escaped(key, depth_left=0): _escaped(item, depth_left=depth_left - 1)
            for key, item in value.items()
        }
    return value


def _write_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Each line is indented: a message with line breaks cannot pass for an event."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    cut = text.getvalue()[:TRACEBACK_CHARS_MAX]
    stream.write("\n".join("    " + printable(line) for line in cut.splitlines()))


def _final_processors(log_format: LogFormat, *, colors: bool) -> list[structlog.typing.Processor]:
    # Tracebacks are plain text: richer renderers show local variables, which are keys and prompts.
    if log_format is LogFormat.JSON:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_write_traceback)]

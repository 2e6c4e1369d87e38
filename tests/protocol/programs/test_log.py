import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
import trio

from protocol.ids import JobId
from protocol.programs.log import HIDDEN, bind_job, configure_logging
from protocol.programs.log_format import LogFormat


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_what_the_task_of_a_job_logs_carries_the_jobs_id() -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=LogFormat.JSON, stream=stream)
    log = structlog.get_logger()

    async def serve() -> None:
        bind_job(JobId("J"))
        log.info("job_refused", code="busy")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
    log.info("job_forgotten")
    inside, outside = lines(stream)
    assert (inside["event"], inside["job_id"], inside["code"]) == ("job_refused", "J", "busy")
    assert "job_id" not in outside


def test_secrets_and_content_never_reach_the_log() -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=LogFormat.JSON, stream=stream)
    structlog.get_logger().info("x", prompt="my diary", api_key="sk-1", raw=b"diary", node="N")
    assert lines(stream)[0] | {"timestamp": ""} == {
        "event": "x",
        "level": "info",
        "timestamp": "",
        "prompt": HIDDEN,
        "api_key": HIDDEN,
        "raw": "<5 bytes>",
        "node": "N",
    }


@pytest.mark.parametrize("log_format", LogFormat)
def test_tracebacks_show_no_local_variables(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=log_format, stream=stream)
    local = "hunter" + "2"
    try:
        raise ValueError("what happened")
    except ValueError:
        structlog.get_logger().exception("handler_failed")
    assert "what happened" in stream.getvalue()
    assert local not in stream.getvalue()


def test_events_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    configure_logging(level="warning", log_format=LogFormat.CONSOLE, stream=stream)
    structlog.get_logger().info("too_much")
    structlog.get_logger().warning("worth_it")
    assert "too_much" not in stream.getvalue()
    assert "worth_it" in stream.getvalue()


def test_libraries_log_errors_in_the_same_format() -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=LogFormat.JSON, stream=stream)
    logging.getLogger("somelibrary.host").warning("chatter")
    logging.getLogger("somelibrary.host").error("listener %s failed", 7)
    assert [line["event"] for line in lines(stream)] == ["listener 7 failed"]


def test_an_unstamped_log_is_the_same_twice() -> None:
    def run() -> str:
        stream = io.StringIO()
        configure_logging(level="info", log_format=LogFormat.JSON, stream=stream, stamped=False)
        structlog.get_logger().info("job_started", job_id="J")
        return stream.getvalue()

    assert run() == run()


FORGERY = (
    "x\n2026-11-26T17:00:00Z [info ] receipt_settled amount_nano=999\n\x1b]0;owned\x07\x1b[2J\u202e"
)


@pytest.mark.parametrize("log_format", LogFormat)
def test_what_a_peer_says_cannot_forge_a_line_or_steer_a_terminal(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=log_format, stream=stream)
    log = structlog.get_logger()
    log.info("conversation_failed", error=FORGERY, peers=[FORGERY], by={FORGERY: FORGERY})
    log.info("endless", error="y" * 100_000)
    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert not set(text) & set("\x1b\x07\u202e\r")
    assert len(text) < 10_000


def test_a_traceback_is_indented_and_escaped() -> None:
    stream = io.StringIO()
    configure_logging(level="info", log_format=LogFormat.CONSOLE, stream=stream)
    try:
        raise ValueError(FORGERY)
    except ValueError as error:
        structlog.get_logger().error("handler_crashed", exc_info=error)
    first, *traceback = stream.getvalue().splitlines()
    assert "handler_crashed" in first
    assert traceback
    assert all(line.startswith("    ") for line in traceback)
    assert "\x1b" not in stream.getvalue()

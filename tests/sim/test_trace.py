import hashlib
import io
import sys
from types import ModuleType

import pytest
import structlog

from protocol.ids import PeerId
from sim.trace import Trace, Voice

PEER = PeerId("12D3KooWabcdef")


def make_trace() -> tuple[Trace, io.StringIO]:
    sink = io.StringIO()
    return Trace(lambda: 1.5, sink=sink), sink


def test_a_line_has_time_party_event_and_fields() -> None:
    trace, sink = make_trace()
    trace.add("node-1", "receipt", amount=5, share=0.25, to=None)
    (line,) = sink.getvalue().splitlines()
    assert line.split() == ["1.500", "node-1", "receipt", "amount=5", "share=0.25", "to=None"]
    assert trace.counts == {"receipt": 1}
    assert trace.lines == 1


def test_the_digest_is_that_of_the_lines() -> None:
    trace, sink = make_trace()
    empty = trace.hexdigest()
    trace.add("a", "b", c=1)
    assert trace.hexdigest() == hashlib.sha256(sink.getvalue().encode()).hexdigest() != empty


def test_peers_are_called_by_their_names() -> None:
    trace, sink = make_trace()
    trace.name(PEER, "node-7")
    trace.add("a", "b", address=f"/memory/1/p2p/{PEER}")
    assert sink.getvalue().rstrip().endswith("address=/memory/1/p2p/node-7")


def test_what_programs_log_becomes_part_of_the_trace() -> None:
    trace, sink = make_trace()
    before = structlog.get_config()
    with trace.logs_captured():
        log = structlog.get_logger()
        log.info("ignored_party", a=1)
        with Voice("node-1").speaking():
            log.info("offer", size=2)
            log.debug("not_worth_a_line")
    lines = [line.split()[1:] for line in sink.getvalue().splitlines()]
    assert lines == [["-", "ignored_party", "a=1"], ["node-1", "offer", "size=2"]]
    assert structlog.get_config() == before
    assert trace.alarms == []


def test_a_logger_that_another_program_has_cached_is_captured_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("cached")
    module.log = structlog.get_logger()  # type: ignore[attr-defined]  # modules take any name
    monkeypatch.setitem(sys.modules, "cached", module)
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(io.StringIO()), cache_logger_on_first_use=True
    )
    try:
        module.log.info("before")
        trace, sink = make_trace()
        with trace.logs_captured():
            module.log.info("inside")
    finally:
        structlog.reset_defaults()
    assert sink.getvalue().split() == ["1.500", "-", "inside"]


def test_modules_of_others_are_asked_for_nothing_that_they_do_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some import or warn when they are asked for a name that they lack."""
    asked: list[str] = []
    module = ModuleType("lazy")
    module.__getattr__ = asked.append  # type: ignore[method-assign]  # as a module defines it
    monkeypatch.setitem(sys.modules, "lazy", module)
    # What keeps a name from being imported.
    monkeypatch.setitem(sys.modules, "blocked", None)
    trace, _ = make_trace()
    with trace.logs_captured():
        pass
    assert not asked


def test_the_dead_say_nothing() -> None:
    trace, sink = make_trace()
    voice = Voice("node-1")
    with trace.logs_captured(), voice.speaking():
        voice.is_mute = True
        structlog.get_logger().error("last_words")
    assert sink.getvalue() == ""
    assert trace.alarms == []


def test_an_error_is_an_alarm_with_its_traceback() -> None:
    trace, sink = make_trace()
    with trace.logs_captured(), Voice("node-1").speaking():
        try:
            raise ZeroDivisionError("oops")
        except ZeroDivisionError as error:
            structlog.get_logger().error("handler_crashed", handler="x", exc_info=error)
    (alarm,) = trace.alarms
    assert alarm.startswith("node-1 logged handler_crashed handler=x failure=ZeroDivisionError")
    assert "test_trace.py" in alarm
    # Paths and line numbers are not the same everywhere: only what happened is in the trace.
    assert "test_trace.py" not in sink.getvalue()
    assert "failure=ZeroDivisionError: oops" in sink.getvalue()

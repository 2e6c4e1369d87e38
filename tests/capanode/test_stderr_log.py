"""What a worker prints, taken apart."""

import json

import pytest

from capanode.worker.stderr_log import (
    LINE_BYTES_MAX,
    LINES_PER_S_MAX,
    VALUE_CHARS_MAX,
    LogLine,
    StderrLog,
)


def feed(log: StderrLog, text: str, now_s: float = 0.0) -> list[LogLine]:
    return list(log.feed(text.encode(), now_s))


def test_records_are_logged_with_their_level_and_fields() -> None:
    record = {"event": "step_failed", "level": "error", "job_id": "01J", "step": 3}
    assert feed(StderrLog(), json.dumps(record) + "\n") == [
        LogLine("error", "step_failed", {"job_id": "01J", "step": 3})
    ]


def test_lines_may_arrive_in_pieces() -> None:
    log = StderrLog()
    assert feed(log, '{"event": "node') == []
    assert feed(log, '_gone"}\n{"event"') == [LogLine("info", "node_gone", {})]
    assert list(log.finish()) == []


def test_strange_records_are_hidden() -> None:
    log = StderrLog()
    strange = [
        {"event": "Ev il\n"},
        {"event": 5},
        {"level": "error"},
        {"event": "good", "level": "critical"},
        {"event": "good", "level": []},
        [],
    ]
    lines = "".join(json.dumps(record) + "\n" for record in strange)
    printed = [line for line in feed(log, lines) if line.event != "worker_printed"]
    assert printed == []


def test_fields_are_bounded_and_keep_off_reserved_names() -> None:
    record = {
        **{"event": "ok", "self": 1, "timestamp": "x", "Bad Name": 1, "nested": {"a": 1}},
        "long": "x" * (VALUE_CHARS_MAX + 1),
    }
    (line,) = feed(StderrLog(), json.dumps(record) + "\n")
    assert line.fields == {"long": "x" * VALUE_CHARS_MAX}


def test_prints_are_shown_while_no_job_can_have_run() -> None:
    log = StderrLog()
    assert feed(log, "a warning of a library\n") == [
        LogLine("info", "worker_printed", {"line": "a warning of a library"})
    ]
    log.may_hold_content = True
    assert feed(log, "thread panicked at 'my secret prompt'\n") == []
    assert list(log.finish()) == [LogLine("info", "worker_lines_hidden", {"lines": 1})]


def test_places_of_a_native_crash_are_always_shown() -> None:
    log = StderrLog()
    log.may_hold_content = True
    crash = 'Fatal Python error: Segmentation fault\n  File "/code/x.py", line 3 in step\n'
    assert [line.fields["line"] for line in feed(log, crash)] == crash.rstrip().split("\n")


def test_floods_are_cut() -> None:
    log = StderrLog()
    flood = '{"event": "again"}\n' * 1_000
    assert len(feed(log, flood)) == LINES_PER_S_MAX
    assert len(feed(log, flood, 1.5)) == LINES_PER_S_MAX
    (hidden,) = log.finish()
    assert hidden.fields == {"lines": 2 * (1_000 - LINES_PER_S_MAX)}


def test_endless_line_does_not_grow() -> None:
    log = StderrLog()
    pieces = [line for _ in range(100) for line in feed(log, "x" * 1_000)]
    assert len(pieces) >= 100_000 // (LINE_BYTES_MAX + 1_000)


def test_lines_above_the_limit_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def count(text: str) -> object:
        parsed.append(text)
        return {"event": "x"}

    monkeypatch.setattr("capanode.worker.stderr_log.json.loads", count)
    log = StderrLog()
    shown = list(log.feed(b'{"event":"x"}\n' * 10 * LINES_PER_S_MAX, 1.0))
    assert len(shown) == len(parsed) == LINES_PER_S_MAX
    assert next(log.finish()).fields == {"lines": 9 * LINES_PER_S_MAX}

import pytest
import structlog

from protocol.programs.log_limits import LINES, StrangersLines


def test_few_lines_are_written_of_what_strangers_cause() -> None:
    now_s = 0.0
    limit = StrangersLines(lambda: now_s)

    def log(name: str) -> object:
        return limit(None, "info", {"event": name})

    for _ in range(LINES.burst):
        assert log("conversation_failed") == {"event": "conversation_failed"}
    for _ in range(7):
        with pytest.raises(structlog.DropEvent):
            log("conversation_failed")
    assert log("link_refused") == {"event": "link_refused"}
    now_s = 1.0
    assert log("conversation_failed") == {"event": "conversation_failed", "left_out": 7}
    assert log("conversation_failed") == {"event": "conversation_failed"}


def test_what_is_worth_money_is_written_however_often_it_happens() -> None:
    limit = StrangersLines(lambda: 0.0)
    for _ in range(10 * LINES.burst):
        assert limit(None, "info", {"event": "receipt_settled"})

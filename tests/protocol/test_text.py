import pytest

from protocol.text import ANSWER_MARKS, printable


@pytest.mark.parametrize("text", ["", "Grüße, 世界 — ½ €", "a\u00a0b\u3000c", "smile 😀"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\ud800", "\\ud800"),
        ("\x00\x7f", "\\x00\\x7f"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_moves_a_cursor_or_a_line_becomes_visible(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_answer_keeps_its_lines_and_emoji_and_nothing_else() -> None:
    answer = "one\n\ttwo 👩\u200d💻\x1b[31m"
    assert printable(answer, keep=ANSWER_MARKS) == "one\n\ttwo 👩\u200d💻\\x1b[31m"


def test_long_text_is_cut_and_says_so() -> None:
    assert printable("x" * 30, chars_max=10) == "x" * 10 + "… (20 more characters)"

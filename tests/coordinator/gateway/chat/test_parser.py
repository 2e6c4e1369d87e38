"""Events of an answer: the same however its text was cut."""

import json
import random
import string
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from coordinator.gateway.chat.parser import AnswerParser
from protocol.chat_formats import CHAT_FORMATS
from protocol.codec import encode
from protocol.endings import Finish
from protocol.generation import TokenScore, TokenScores
from protocol.payload import Chunk

TOOLS = frozenset({"weather", "clock"})
CALL = '{"name": "weather", "arguments": {"city": "Köln", "days": [1, {"a": "}"}]}}'
ARGUMENTS = '{"city": "Köln", "days": [1, {"a": "}"}]}'

# What a model may write, and what is made of it: reasoning, text, calls, and the reason of the end.
ANSWERS: dict[str, tuple[str, str, str, list[tuple[str, str]], str]] = {
    "plain text": ("hermes", "Hello", "Hello", [], "stop"),
    "a call": ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [("weather", ARGUMENTS)], ""),
    "text before a call": (
        "hermes",
        f"Let me see.\n\n<tool_call>{CALL}</tool_call>\n",
        "Let me see.",
        [("weather", ARGUMENTS)],
        "",
    ),
    "two calls": (
        "hermes",
        f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name":"clock","arguments":{{}}}}</tool_call>',
        "",
        [("weather", ARGUMENTS), ("clock", "{}")],
        "",
    ),
    "text after a call": (
        "hermes",
        f"<tool_call>{CALL}</tool_call>\n\nDone.",
        "Done.",
        [("weather", ARGUMENTS)],
        "",
    ),
    "keys in another order": (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "name": "clock"}</tool_call>',
        "",
        [("clock", '{"a": 1}')],
        "",
    ),
    "arguments as text": (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("clock", '{"a": 1}')],
        "",
    ),
    "a mark inside an argument": (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": {"a": "</tool_call>"}}</tool_call>',
        "",
        [("clock", '{"a": "</tool_call>"}')],
        "",
    ),
    "arguments that break off": (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": {"a": "b',
        "",
        [("clock", '{"a": "b')],
        "",
    ),
    "a malformed call is text": (
        "hermes",
        "<tool_call>clock()</tool_call>",
        "<tool_call>clock()</tool_call>",
        [],
        "stop",
    ),
    "a call without a name is text": (
        "hermes",
        'So <tool_call>{"nome": "clock"}</tool_call>',
        'So <tool_call>{"nome": "clock"}</tool_call>',
        [],
        "stop",
    ),
    "a call after a malformed one": (
        "hermes",
        f"<tool_call>{{}}</tool_call><tool_call>{CALL}</tool_call>",
        "<tool_call>{}</tool_call>",
        [("weather", ARGUMENTS)],
        "",
    ),
    "a mark that breaks off": ("hermes", "a <tool_ca", "a <tool_ca", [], "stop"),
    "a call that breaks off early": (
        "hermes",
        'a\n<tool_call>{"name": "clo',
        'a\n<tool_call>{"name": "clo',
        [],
        "stop",
    ),
    "half a surrogate pair is no name": (
        "hermes",
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        [],
        "stop",
    ),
    "bare JSON": (
        "llama3_json",
        ' {"name": "clock", "parameters": {"a": 1}}; {"name": "weather", "parameters": {}}',
        "",
        [("clock", '{"a": 1}'), ("weather", "{}")],
        "",
    ),
    "bare JSON of something else": (
        "llama3_json",
        '{"name": "Bob", "parameters": {"a": 1}}',
        '{"name": "Bob", "parameters": {"a": 1}}',
        [],
        "stop",
    ),
    "bare JSON after text": (
        "llama3_json",
        'See: {"name": "clock", "parameters": {}}',
        'See: {"name": "clock", "parameters": {}}',
        [],
        "stop",
    ),
    "a list of calls": (
        "mistral",
        'Hm. [TOOL_CALLS] [{"name": "clock", "arguments": {"a": 1}}, '
        '{"name": "weather", "arguments": {}}]',
        "Hm.",
        [("clock", '{"a": 1}'), ("weather", "{}")],
        "",
    ),
}


def read(
    pieces: Sequence[str],
    chat_format: str = "hermes",
    *,
    reasons: bool = False,
    is_parallel: bool = True,
    tools: frozenset[str] = TOOLS,
    finish: Finish = Finish.STOP,
) -> tuple[str, str, list[tuple[str, str]], str]:
    """(reasoning, text, calls, finish reason) of an answer that arrives in pieces."""
    parser = AnswerParser(
        CHAT_FORMATS[chat_format],
        lambda index: f"call_{index}",
        tools=tools,
        is_parallel=is_parallel,
        reads_reasoning=reasons,
    )
    events: list[AnswerEvent] = []
    for piece in pieces:
        events += parser.add([Chunk((1,), piece)])
    last, reason = parser.finish(finish)
    reasoning, text = "", ""
    calls: list[tuple[str, str]] = []
    for event in events + last:
        match event:
            case ReasoningDelta():
                reasoning += event.text
            case TextDelta():
                text += event.text
            case ToolCallStart():
                assert event.index == len(calls)
                assert event.id == f"call_{event.index}"
                calls.append((event.name, ""))
            case ToolCallArguments():
                name, arguments = calls[event.index]
                calls[event.index] = (name, arguments + event.text)
    return reasoning, text, calls, reason


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_read_whole_and_sign_by_sign(case: str) -> None:
    chat_format, answer, text, calls, reason = ANSWERS[case]
    expected = ("", text, calls, reason or "tool_calls")
    assert read([answer], chat_format) == expected
    assert read(list(answer), chat_format) == expected


@pytest.mark.parametrize("chat_format", ["hermes", "mistral"])
def test_reasoning_comes_before_the_answer(chat_format: str) -> None:
    marks = CHAT_FORMATS[chat_format]
    thought = f"\n{marks.reasoning_open}\nWell < hm.\n{marks.reasoning_close}\n\n"
    for answer in (thought + "Four.", list(thought + "Four.")):
        assert read(answer, chat_format, reasons=True)[:2] == ("Well < hm.", "Four.")
    assert read("Four.", chat_format, reasons=True)[:2] == ("", "Four.")
    assert read(thought[:-8], chat_format, reasons=True)[1] == ""


def test_reasoning_and_calls() -> None:
    answer = f"<think>So.</think>\n<tool_call>{CALL}</tool_call>"
    assert read(answer, reasons=True) == ("So.", "", [("weather", ARGUMENTS)], "tool_calls")


def test_without_tools_nothing_is_a_call() -> None:
    answer = f"<tool_call>{CALL}</tool_call>"
    assert read([answer], tools=frozenset()) == ("", answer, [], "stop")


def test_calls_after_the_first_are_dropped_where_one_was_asked_for() -> None:
    answer = f"<tool_call>{CALL}</tool_call>" * 3
    assert read([answer], is_parallel=False)[2] == [("weather", ARGUMENTS)]


def test_an_answer_that_was_cut_off_says_so() -> None:
    assert read([f"<tool_call>{CALL}"], finish=Finish.LENGTH)[3] == "length"


def test_scores_follow_the_text_of_their_chunk() -> None:
    scores = TokenScores((TokenScore(5, b"a", -0.5),))
    parser = AnswerParser(CHAT_FORMATS["hermes"], str)
    chunk = Chunk((5,), "a", encode(scores))
    assert parser.add([chunk, chunk]) == [TextDelta("a"), scores, TextDelta("a"), scores]


def test_a_long_run_of_space_costs_little_and_is_kept() -> None:
    answer = "a" + "\n" * 5_000
    assert read(list(answer))[1] == answer
    assert read([f"a<tool_call>{' ' * 200_000}x"])[1].endswith("x")


WORDS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    CALL,
    '{"name": "clock", "parameters": {"a": "\\"{"}}',
    '{"name": "x", "arguments": {',
    "[",
    "]",
    "}",
    ", ",
    "\n\n",
    " " * 300,
    '"',
    "\\",
    "é🙂",
    "<",
    "<tool",
]


@given(
    st.lists(st.sampled_from(WORDS) | st.text(string.printable, max_size=5), max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(CHAT_FORMATS)),
    st.booleans(),
)
def test_the_cuts_change_nothing(
    words: list[str], rng: random.Random, chat_format: str, reasons: bool
) -> None:
    answer = "".join(words)
    pieces, rest = [], answer
    while rest:
        size = rng.choice([1, 1, 2, 3, 7, 50])
        pieces.append(rest[:size])
        rest = rest[size:]
    assert read(pieces, chat_format, reasons=reasons) == read(
        [answer], chat_format, reasons=reasons
    )


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20)), max_size=4))
def test_arguments_arrive_as_they_were_written(arguments: list[dict[str, str]]) -> None:
    written = [json.dumps(item) for item in arguments]
    answer = "".join(
        f'<tool_call>{{"name": "clock", "arguments": {item}}}</tool_call>' for item in written
    )
    assert [call[1] for call in read(list(answer))[2]] == written

"""Events, byte for byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.errors import error_of
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openai.sse import (
    CHAT_CHOICE,
    TEXT_CHOICE,
    ChoiceEvents,
    Envelope,
    closing_events,
)
from protocol.errors import Code

ENVELOPE = Envelope("chatcmpl-1", "chat.completion.chunk", 1_700_000_000, 'a "model"', "abc")


def events(*, include_usage: bool = False) -> ChoiceEvents:
    return ChoiceEvents(ENVELOPE, CHAT_CHOICE, include_usage=include_usage)


def test_a_chat_event_byte_for_byte() -> None:
    assert events().text('say "hi"\n').decode() == (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
        '"model":"a \\"model\\"","system_fingerprint":"abc","choices":[{"index":0,'
        '"delta":{"content":"say \\"hi\\"\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
    )


def parse(data: bytes) -> list[dict[str, object]]:
    blocks = data.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block[6:]) for block in blocks[:-1] if block != "data: [DONE]"]


def test_the_last_events_end_the_stream() -> None:
    (event,) = parse(events().piece({"delta": {}}, finish_reason="length"))
    assert event["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    assert "usage" not in event
    assert closing_events(ENVELOPE, None) == b"data: [DONE]\n\n"


def test_usage_is_null_until_an_event_of_its_own() -> None:
    asked = events(include_usage=True)
    assert all(event["usage"] is None for event in parse(asked.piece({}) + asked.text("a")))
    (usage,) = parse(closing_events(ENVELOPE, {"total_tokens": 3}))
    assert (usage["choices"], usage["usage"]) == ([], {"total_tokens": 3})


def test_usage_may_be_counted_on() -> None:
    asked = events(include_usage=True)
    asked.count({"total_tokens": 3})
    assert [event["usage"] for event in parse(asked.piece({}) + asked.text("a"))] == [
        {"total_tokens": 3}
    ] * 2


def test_completions_have_their_own_shape() -> None:
    plain = ChoiceEvents(ENVELOPE, TEXT_CHOICE, 2, include_usage=False)
    (event,) = parse(plain.text("hi"))
    assert event["choices"] == [{"index": 2, "text": "hi", "logprobs": None, "finish_reason": None}]
    assert plain.piece({"text": "hi"}) == plain.text("hi")


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_arrives_as_it_was(text: str) -> None:
    data = events().text(text)
    # A line break inside an event would end it early, whichever of Unicode's breaks it is.
    assert data.count(b"\n") == 2
    assert b"\r" not in data
    (event,) = parse(data)
    choices = event["choices"]
    assert isinstance(choices, list)
    assert choices[0]["delta"]["content"] == text


@pytest.mark.parametrize("code", [Code.NODE_LOST, Code.INTERNAL])
def test_an_error_event_is_openais_object(code: Code) -> None:
    (event,) = parse(OPENAI.error_event(error_of(code, "x", is_billed=True).problem))
    error = event["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}


def test_line_breaks_of_unicode_are_escaped() -> None:
    """Many clients split lines at them, although the format does not."""
    text = "a\u2028b\u2029c\u0085d é"
    argument = {"tool_calls": [{"function": {"arguments": text}}]}
    for data in (events().text(text), events().piece({"delta": argument})):
        assert len(data.decode().splitlines()) == 2
        (event,) = parse(data)
        assert text in json.dumps(event, ensure_ascii=False)

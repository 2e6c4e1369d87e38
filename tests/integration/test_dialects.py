"""The other dialects of the door in a real market: one answer in each, and what it cost."""

import json
from typing import Any

import pytest

from tests.integration.conftest import RunningMarket

pytestmark = [pytest.mark.models, pytest.mark.slow]

CHAT = "smollm2-135m-instruct"
TURNS = [{"role": "user", "content": "Say hello."}]


def answered(market: RunningMarket, path: str, **body: Any) -> dict[str, Any]:
    with market.client() as http:
        response = http.post(path, json={"model": CHAT, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_question_has_one_answer_and_one_price_in_each_dialect(market: RunningMarket) -> None:
    chat = answered(market, "/v1/chat/completions", messages=TURNS, max_tokens=12)
    message = answered(market, "/v1/messages", messages=TURNS, max_tokens=12)
    response = answered(market, "/v1/responses", input="Say hello.", max_output_tokens=12)
    text = chat["choices"][0]["message"]["content"]
    assert message["content"] == [{"type": "text", "text": text}]
    assert response["output"][0]["content"][0]["text"] == text
    counts = {
        (chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"]),
        *(
            (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"])
            for answer in (message, response)
        ),
    }
    assert len(counts) == 1
    with market.client() as http:
        count = http.post("/v1/messages/count_tokens", json={"model": CHAT, "messages": TURNS})
    assert count.json() == {"input_tokens": chat["usage"]["prompt_tokens"]}
    assert count.headers["x-capacloud-amount-nano"] == "0"


def test_a_message_says_which_text_ended_it(market: RunningMarket) -> None:
    whole = answered(market, "/v1/messages", messages=TURNS, max_tokens=12)["content"][0]["text"]
    word = whole.split()[1]
    stops = ["\0", word, "\1"]
    message = answered(market, "/v1/messages", messages=TURNS, max_tokens=12, stop_sequences=stops)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", word)
    chat = answered(
        market,
        "/v1/chat/completions",
        messages=TURNS,
        max_tokens=12,
        stop=stops,
        include_stop_str_in_output=True,
    )
    choice = chat["choices"][0]
    text = message["content"][0]["text"] + word
    assert (choice["stop_reason"], choice["message"]["content"]) == (word, text)


def test_streams_end_as_their_clients_expect(market: RunningMarket) -> None:
    cases = {
        "/v1/messages": ({"messages": TURNS, "max_tokens": 6}, "message_stop"),
        "/v1/responses": ({"input": "Say hello.", "max_output_tokens": 6}, "response.incomplete"),
    }
    with market.client() as http:
        for path, (body, last) in cases.items():
            streamed = http.post(path, json={"model": CHAT, "stream": True, **body})
            *_, event = streamed.text.strip().split("\n\n")
            assert json.loads(event.partition("data: ")[2])["type"] == last

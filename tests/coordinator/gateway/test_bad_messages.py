"""A stream's door with something wrong at each place of its messages: a typed error in the record's
turn or at the end, never a crash."""

import json
from typing import Any

import pytest

from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_bad_fields import NUMBERS, WRONG, changed, places
from tests.coordinator.gateway.test_streams import CLOSE, OPEN, connected, record, talk

PARAMETERS = {
    "sequence_id": 7,
    "sequence_start": True,
    "sequence_end": False,
    "session": "one",
    "provider": "{}",
}
OPENING = OPEN | {"version": "", "parameters": PARAMETERS}
RECORD = record([1, 2], id="one", context=False, outputs=[{"name": "sum"}], parameters=PARAMETERS)


def wrong_ones(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        changed(message, path, wrong)
        for path, _ in places(message)
        for wrong in (None, *WRONG, *NUMBERS)
    ]


def check(error: dict[str, Any], why: object) -> None:
    assert error["code"] not in (None, "internal"), (why, error)
    assert error["message"], why


def test_a_wrong_opening_is_refused_or_harmless(gateway: Harness) -> None:
    for opening in wrong_ones(OPENING):
        *_, last, end = talk(gateway, opening, CLOSE)
        if last["type"] == "closed":
            assert end["code"] == 1000
        else:
            check(last["error"], opening)
            assert end["code"] == 1008, opening


def test_a_wrong_record_is_told_in_its_turn(gateway: Harness) -> None:
    # What is no JSON or of another type ends the stream, and context is not answered.
    wrong = [
        message
        for message in wrong_ones(RECORD)
        if message["type"] == "record"
        and message["context"] is not True
        and "\\ud" not in json.dumps(message)
    ]
    heard = talk(gateway, OPEN, *wrong, RECORD, CLOSE)
    assert heard[-1] == {"type": "websocket.close", "code": 1000}
    answers = heard[1:-2]
    assert [answer["sequence"] for answer in answers] == list(range(len(wrong) + 1))
    assert answers[-1]["type"] == "prediction"
    for message, answer in zip(wrong, answers, strict=False):
        if answer["type"] == "error":
            check(answer["error"], message)


def test_a_bug_of_ours_is_told_at_the_end_of_a_stream(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(gateway.market, "model", broken)
    told, end = talk(gateway, OPEN)
    assert told["error"]["code"] == "internal"
    assert end == {"type": "websocket.close", "code": 1011, "reason": "internal"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "\x00",
        '{"type": NaN}',
        '{"type": "record", "type": "record"}',
        '{"type": "\\ud800"}',
        '{"\\udfff": 1}',
        "[" * 30_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest.mark.parametrize("is_binary", [False, True])
def test_what_is_no_message_ends_the_stream(gateway: Harness, text: str, is_binary: bool) -> None:
    content = {"bytes": text.encode()} if is_binary else {"text": text}

    async def run() -> list[dict[str, Any]]:
        async with connected(gateway) as socket:
            socket.send(OPEN)
            socket.incoming.put_nowait({"type": "websocket.receive", **content})
            return await socket.hear_all()

    opened, told, end = gateway.run(run())
    assert opened["type"] == "opened"
    check(told["error"], text[:40])
    assert end["code"] == 1008

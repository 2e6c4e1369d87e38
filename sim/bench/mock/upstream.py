"""`python -m sim.bench.mock.upstream PORT`: the mock as an OpenAI server, with nothing around it.

What other gateways are put in front of, and what a client reaches without any.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from sim.bench.mock.script import WORD, pace_s

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

_TOKENS_DEFAULT = 16


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """POST /v1/chat/completions, and GET /v1/models."""
    if scope["type"] != "http":
        return
    if scope["method"] == "GET":
        await _send_json(send, {"object": "list", "data": [{"id": "mock", "object": "model"}]})
        return
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    asked = json.loads(body)
    prompt = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
    tokens = asked.get("max_tokens", _TOKENS_DEFAULT)
    if asked.get("stream"):
        await _stream(send, tokens, pace_s(prompt))
    else:
        await _send_json(send, _whole(tokens))


async def _stream(send: Send, tokens: int, pace: float) -> None:
    await send(_start(b"text/event-stream"))
    for number in range(tokens):
        if number and pace:
            await asyncio.sleep(pace)
        delta: dict[str, str] = {"content": WORD} | ({"role": "assistant"} if not number else {})
        await send(_event(_chunk(delta, None)))
    await send(_event(_chunk({}, "length")))
    await send(_event({**_chunk({}, None), "choices": [], "usage": _usage(tokens)}))
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _chunk(delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "mock",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _whole(tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": WORD * tokens}
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": "mock",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": _usage(tokens),
    }


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}


def _event(data: dict[str, Any]) -> dict[str, Any]:
    event = b"data: " + _to_json(data) + b"\n\n"
    return {"type": "http.response.body", "body": event, "more_body": True}


def _start(content_type: bytes) -> dict[str, Any]:
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", content_type)],
    }


async def _send_json(send: Send, data: dict[str, Any]) -> None:
    await send(_start(b"application/json"))
    await send({"type": "http.response.body", "body": _to_json(data)})


def _to_json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)

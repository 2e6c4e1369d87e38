"""Reading named server-sent events, as clients do."""

import json
from typing import Any

import httpx


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Each with a name that is its type, and in one line."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = _text(response).split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        # Many clients split lines wherever Unicode breaks one.
        name, data = block.splitlines()
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """A whole answer."""
    answer: dict[str, Any] = json.loads(_text(response))
    return answer


def _text(response: httpx.Response) -> str:
    """Of two answers to one request only the job's id differs."""
    return response.text.replace(response.headers["x-capacloud-job-id"], "JOB")

"""Twenty clients that ask questions over HTTP as applications with the stock client do.

Half of the answers are streamed. The stock client asks again by its own rules
(`sim.chaos.stock_retries`); of a stream that breaks in the middle it raises an error, and the
application asks the question again, out of the same number of retries.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
import trio

from protocol.errors import CapaError
from sim.chaos import stock_retries
from sim.chaos.model import NAME, RECITAL

CLIENTS = 20
# What an application gives a chat. The stock client's own limit is ten minutes.
ANSWER_WITHIN_S = 60.0
# Between an answer and the next question: twenty clients ask about ten questions a second.
PAUSE_S = (0.5, 2.5)
_TOKENS = (8, 40, len(RECITAL))


class AnswerEnd(StrEnum):
    ANSWERED = "answered"
    FAILED = "failed"
    # The text was not the model's: a token was lost or came twice.
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Question:
    """What became of one question. Times are trio's; `tried_at` is when the last try began, and
    `reasons` say why it was not the first."""

    asked_at: float
    tried_at: float
    ended_at: float
    end: AnswerEnd
    job_id: str
    is_streamed: bool
    reasons: tuple[str, ...]


class _NotAnsweredError(CapaError):
    """One try failed; `headers` are the answer's, if one came."""

    def __init__(self, reason: str, headers: Mapping[str, str] | None, *, is_final: bool) -> None:
        super().__init__(reason)
        self.headers = headers or {}
        self.is_final = is_final


@dataclass(slots=True)
class Load:
    """The clients and what they saw. `run` asks until `stop`, and ends when all are answered."""

    base_url: str
    api_key: str
    seed: int
    questions: list[Question] = field(default_factory=list)
    _stopped: trio.Event = field(default_factory=trio.Event)

    def stop(self) -> None:
        """Ask nothing new."""
        self._stopped.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(self._be_client, random.Random(f"{self.seed} {number}"))

    async def _be_client(self, rng: random.Random) -> None:
        client = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=httpx.Timeout(ANSWER_WITHIN_S, connect=stock_retries.CONNECT_WITHIN_S),
            trust_env=False,
        )
        async with client:
            while not self._stopped.is_set():
                self.questions.append(await _ask(client, rng))
                with trio.move_on_after(rng.uniform(*PAUSE_S)):
                    await self._stopped.wait()


async def _ask(client: httpx.AsyncClient, rng: random.Random) -> Question:
    """One question to its end, with the stock client's retries."""
    tokens, is_streamed = rng.choice(_TOKENS), rng.random() < 0.5
    asked_at = trio.current_time()
    reasons: list[str] = []
    job_id, end = "", AnswerEnd.FAILED
    for retry in range(stock_retries.RETRIES_MAX + 1):
        tried_at = trio.current_time()
        try:
            job_id, text = await _try_once(client, tokens, is_streamed=is_streamed)
            end = AnswerEnd.ANSWERED if text == RECITAL[:tokens] else AnswerEnd.WRONG
            break
        except _NotAnsweredError as error:
            reasons.append(str(error))
            if error.is_final or retry == stock_retries.RETRIES_MAX:
                break
            await trio.sleep(stock_retries.wait_s(retry, error.headers, rng))
    ended_at = trio.current_time()
    return Question(asked_at, tried_at, ended_at, end, job_id, is_streamed, tuple(reasons))


async def _try_once(
    client: httpx.AsyncClient, tokens: int, *, is_streamed: bool
) -> tuple[str, str]:
    """The job's id and the text. Raises _NotAnsweredError."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Recite."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": is_streamed,
    }
    try:
        with trio.fail_after(ANSWER_WITHIN_S):
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                data = await response.aread()
    except trio.TooSlowError:
        raise _NotAnsweredError("timeout", None, is_final=False) from None
    except httpx.TransportError as error:
        raise _NotAnsweredError(type(error).__name__, None, is_final=False) from None
    if response.is_error:
        is_final = not stock_retries.is_retried(response.status_code, response.headers)
        reason = f"{response.status_code} {_code_of(data)}"
        raise _NotAnsweredError(reason, response.headers, is_final=is_final)
    answer_id, text = _read_stream(data) if is_streamed else _read_whole(data)
    # By a header as well, except where a stream began before its job did.
    return answer_id.removeprefix("chatcmpl-"), text


def _read_whole(data: bytes) -> tuple[str, str]:
    plain = json.loads(data)
    return plain["id"], plain["choices"][0]["message"]["content"]


def _read_stream(data: bytes) -> tuple[str, str]:
    """Raises _NotAnsweredError if the stream does not say that it is complete."""
    answer_id, text, is_done = "", "", False
    for line in data.decode().splitlines():
        if line == "data: [DONE]":
            is_done = True
        elif line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                reason = f"stream {event['error'].get('code')}"
                raise _NotAnsweredError(reason, None, is_final=False)
            answer_id = event["id"]
            text += "".join(c["delta"].get("content") or "" for c in event["choices"])
    if not is_done:
        raise _NotAnsweredError("stream cut", None, is_final=False)
    return answer_id, text


def _code_of(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "without a code"

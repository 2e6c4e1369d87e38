"""Scores of tokens in OpenAI's two shapes: that of chats, and the older one of completions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protocol.generation import Alternative, TokenScore

# What OpenAI writes for a token that could not be: JSON has no minus infinity.
_LOGPROB_MIN = -9_999.0


def chat_scores(scores: Iterable[TokenScore]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {"content": [_chat_score(score) for score in scores], "refusal": None}


def _chat_score(score: TokenScore) -> dict[str, Any]:
    return _token(score) | {"top_logprobs": [_token(item) for item in score.top or ()]}


def _token(item: TokenScore | Alternative) -> dict[str, Any]:
    return {
        "token": item.piece.decode(errors="replace"),
        "logprob": _number(item.logprob),
        "bytes": list(item.piece),
    }


@dataclass(slots=True)
class TextScores:
    """`logprobs` of a completion's choices; it counts on from one part of a stream to the next."""

    offset: int = 0
    _is_first: bool = field(default=True)

    def write(self, scores: Iterable[TokenScore], *, is_prompt: bool = False) -> dict[str, Any]:
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for score in scores:
            # Nothing stands before the prompt's first token, so it has no score.
            is_unscored = is_prompt and self._is_first
            self._is_first = False
            tokens.append(_legacy_text(score.piece))
            logprobs.append(None if is_unscored else _number(score.logprob))
            top = {_legacy_text(item.piece): _number(item.logprob) for item in score.top or ()}
            tops.append(None if is_unscored or score.top is None else top)
            offsets.append(self.offset)
            self.offset += len(score.piece.decode(errors="ignore"))
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _legacy_text(piece: bytes) -> str:
    """OpenAI's spelling of tokens that are a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _number(logprob: float) -> float:
    return max(_LOGPROB_MIN, logprob) if math.isfinite(logprob) else _LOGPROB_MIN

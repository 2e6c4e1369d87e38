"""What the mock says, and when: in the text of the request, so that both mocks understand it."""

import re

_PACE = re.compile(r"pace=(\d+)ms")
_BEAT = re.compile(r"beat=(\d+)ms")
# Nothing reads a longer head of a prompt.
_HEAD_CHARS = 64
WORD = " word"
# The token's id, in a vocabulary that does not exist.
TOKEN_ID = 7


def pace_s(prompt: str) -> float:
    """Seconds between two tokens, 0 for none: what `pace=20ms` in the prompt's head says."""
    found = _PACE.search(prompt[:_HEAD_CHARS])
    return int(found[1]) / 1_000 if found else 0.0


def beat_s(prompt: str) -> float:
    """As `pace_s`, for tokens of all jobs at once, as of an engine that takes so long for a step:
    what `beat=40ms` says."""
    found = _BEAT.search(prompt[:_HEAD_CHARS])
    return int(found[1]) / 1_000 if found else 0.0


def on_beat(prompt: str, beat_ms: int) -> str:
    return f"beat={beat_ms}ms {prompt}"


def paced(prompt: str, pace_ms: int) -> str:
    return f"pace={pace_ms}ms {prompt}"

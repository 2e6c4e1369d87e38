"""An answer that a node breaks off goes on at another one as if nothing had happened.

Whatever looks back at the answer is tried at every place where it may break: characters in several
tokens, stop strings, formats, calls, penalties, the least number of tokens, the draws.
"""

import json
import random
from typing import Any

import pytest

from capanode.engines.causal_lm import CausalLM
from protocol.generation import (
    ChatMessage,
    FormatKind,
    GenerationInput,
    OutputFormat,
    TokenBias,
    Tool,
    ToolChoice,
)
from tests.capanode.engines.tiny_models import load, run, write_llama

TEMPLATE = "{{ messages[0].content }}{% if think is defined %}</think><think>\n{% endif %}"
CHAT: dict[str, Any] = {"messages": (ChatMessage("user", "What?"),)}
# Characters of two to four bytes, so of as many tokens.
WIDE = tuple(TokenBias(byte, 30.0) for byte in "é→😀a".encode())
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["é→", "😀"]}}, "required": ["a"]}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "wide characters": {"logit_bias": WIDE, "temperature": 2.0},
    "stop string": {"logit_bias": WIDE, "stop": ("aa", "é→", "a😀")},
    "late stop string": {"logit_bias": WIDE, "stop": ("a",), "min_tokens": 9},
    "penalties": {
        "presence_penalty": 1.0,
        "frequency_penalty": 0.7,
        "repetition_penalty": 1.2,
        "min_tokens": 5,
        "ignore_eos": False,
    },
    "filters": {"top_p": 0.8, "top_k": 30, "min_p": 0.01},
    "schema": {"format": OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA))},
    "expression": {"format": OutputFormat(FormatKind.REGEX, "(é|→|😀){3,9}!")},
    "calls": {
        "tools": (Tool("é", "", '{"properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'),),
        "tool_choice": ToolChoice.REQUIRED,
    },
    "reasoning": {
        "template_arguments": '{"think": true}',
        "format": OutputFormat(FormatKind.REGEX, "[a-f]{5}"),
        "logit_bias": tuple(TokenBias(byte, 30.0) for byte in b"</think>"),
    },
    "scores": {"logprobs": 1},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load(
        write_llama(
            tmp_path_factory.mktemp("model"),
            chat_template=TEMPLATE,
            max_position_embeddings=1024,
        ),
        slots=8,
    )


def asked(kind: str, seed: int, **options: Any) -> GenerationInput:
    base = {"max_tokens": 40, "temperature": 1.0, "ignore_eos": True, "seed": seed}
    return GenerationInput(**{**CHAT, **base, **KINDS[kind], **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_an_answer_goes_on_from_any_of_its_tokens(engine: CausalLM, kind: str, seed: int) -> None:
    engine.submit("whole", asked(kind, seed))
    whole = run(engine)
    events = whole.produced("whole")
    tokens, text = whole.tokens("whole"), whole.text("whole")
    rng = random.Random(f"{kind} {seed}")
    places = sorted(rng.sample(range(len(tokens)), min(10, len(tokens))))
    # All of them at once: the rest of an answer depends on nothing beside it.
    for place in places:
        rest = asked(kind, seed, prefix_tokens=tuple(tokens[:place]), max_tokens=max(1, 40 - place))
        engine.submit(str(place), rest)
    found = run(engine)
    for place in places:
        told = "".join(e.text for e in _events_of_first(events, place))
        assert tokens[:place] + found.tokens(str(place)) == tokens
        assert told + found.text(str(place)) == text
        assert found.finished(str(place)).reason == whole.finished("whole").reason


def _events_of_first(events: Any, count: int) -> list[Any]:
    """Those in which the first `count` tokens came."""
    told = []
    for event in events:
        if count < len(event.token_ids) or not count:
            break
        count -= len(event.token_ids)
        told.append(event)
    return told


@pytest.mark.parametrize("kind", ["stop string", "schema", "expression", "calls"])
def test_an_answer_that_was_whole_when_its_node_died_just_ends(engine: CausalLM, kind: str) -> None:
    for seed in range(6):
        one = {"parallel_tool_calls": False}
        engine.submit("whole", asked(kind, seed, max_tokens=300, **one))
        whole = run(engine)
        if whole.finished("whole").reason == "stop":
            break
    assert whole.finished("whole").reason == "stop"
    engine.submit("rest", asked(kind, seed, prefix_tokens=tuple(whole.tokens("whole")), **one))
    rest = run(engine)
    assert (rest.tokens("rest"), rest.text("rest")) == ([], "")
    assert rest.finished("rest").reason == "stop"

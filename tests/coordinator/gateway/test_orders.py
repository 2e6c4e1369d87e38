"""How much a request may use, before any node has counted it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError
from coordinator.gateway.orders import (
    OUTPUT_TOKENS_DEFAULT,
    GenerationOrder,
    PlainOrder,
    Routing,
    check_text_size,
)
from protocol.generation import ChatMessage, GenerationInput
from protocol.grants import Payer
from protocol.limits import PAYLOAD_BYTES_MAX, TOKENS_MAX
from protocol.messages import NO_CONSTRAINTS, Objective, Task
from protocol.payload import EmbeddingInput, ImageInput
from tests.coordinator.gateway.fake_market import CLIENT_KEY, FakeMarket

CALLER = Caller("key-1", CLIENT_KEY)
ROUTING = Routing("tiny-chat", Objective.PRICE, NO_CONSTRAINTS)
MODEL = FakeMarket().model("tiny-chat")
assert MODEL is not None
CONTEXT = MODEL.context_tokens


def spec(prompt: str, max_tokens: int | None = None) -> JobSpec:
    job_input = GenerationInput(
        max_tokens=max_tokens or OUTPUT_TOKENS_DEFAULT, messages=(ChatMessage("user", prompt),)
    )
    order = GenerationOrder(ROUTING, job_input, len(prompt))
    return order.to_spec(CALLER, MODEL, deadline_s=9.0)


def test_a_job_says_who_pays_and_what_is_wanted() -> None:
    made = spec("hi", 5)
    assert (made.model, made.task, made.objective) == (
        "tiny-chat",
        Task.CAUSAL_LM,
        Objective.PRICE,
    )
    assert (made.payer, made.deadline_s) == (Payer("key-1"), 9.0)
    assert made.units_max.output_tokens == 5


def test_people_who_share_an_account_share_no_cache_unless_they_say_so() -> None:
    def salt(key_id: str, *, shares_account: bool = True, **options: Any) -> str:
        job_input = GenerationInput(max_tokens=1, prompt="hi", **options)
        order = GenerationOrder(ROUTING, job_input, 2)
        caller = Caller(key_id, CLIENT_KEY, shares_account=shares_account)
        made = order.to_spec(caller, MODEL, deadline_s=9.0).job_input
        assert isinstance(made, GenerationInput)
        return made.cache_salt

    salts = [salt("one"), salt("two"), salt("one", cache_salt="a"), salt("two", cache_salt="a")]
    assert len(set(salts)) == 4
    assert "one" not in salts[0]  # A node does not learn the key's name.
    shared = [salt(name, cache_salt="a", shares_cache=True) for name in ("one", "two")]
    assert shared == ["a", "a"]
    assert salt("one", shares_account=False) == ""


@given(st.text(max_size=400), st.none() | st.integers(1, 3_000))
def test_expected_units_fit_the_maximum_and_both_fit_the_context(
    prompt: str, max_tokens: int | None
) -> None:
    made = spec(prompt, max_tokens)
    assert made.units_expected.fits_in(made.units_max)
    assert made.units_max.input_tokens <= CONTEXT
    assert made.units_expected.input_tokens + made.units_max.output_tokens <= CONTEXT


@pytest.mark.parametrize("max_tokens", [None, 1, CONTEXT - 1, CONTEXT, 32_000, TOKENS_MAX])
@pytest.mark.parametrize("prompt", ["hi", "word " * 1_600, "word " * 5_000])
def test_a_guess_refuses_nothing_and_no_answer_is_longer_than_a_context(
    prompt: str, max_tokens: int | None
) -> None:
    made = spec(prompt, max_tokens)
    assert made.units_max.output_tokens == min(max_tokens or OUTPUT_TOKENS_DEFAULT, CONTEXT - 1)


@pytest.mark.parametrize(
    "job_input",
    [
        GenerationInput(max_tokens=1, prompt="x" * 32 * CONTEXT),
        GenerationInput(max_tokens=1, prompt_tokens=(1,) * CONTEXT),
    ],
)
def test_what_certainly_cannot_fit_is_refused_before_anything_is_held(
    job_input: GenerationInput,
) -> None:
    order = GenerationOrder(ROUTING, job_input, len(job_input.prompt or ""))
    with pytest.raises(ApiError, match="maximum context length is 2048") as caught:
        order.to_spec(CALLER, MODEL, deadline_s=1.0)
    assert (caught.value.problem.status, caught.value.problem.param) == (400, "prompt")


def test_a_model_for_another_task_is_the_requests_fault() -> None:
    order = PlainOrder(Task.EMBEDDING, "input", ROUTING, EmbeddingInput(("a",)), 1)
    with pytest.raises(ApiError, match="text generation, not for embeddings") as caught:
        order.to_spec(CALLER, MODEL, deadline_s=1.0)
    assert (caught.value.problem.status, caught.value.problem.param) == (400, "model")


def test_an_unknown_model_is_left_to_the_market() -> None:
    order = GenerationOrder(ROUTING, GenerationInput(max_tokens=9_999, prompt="x"), 1)
    assert order.input_param == "prompt"
    assert order.to_spec(CALLER, None, deadline_s=1.0).units_max.output_tokens == 9_999


def test_other_tasks_are_metered_by_their_own_units() -> None:
    texts = PlainOrder(Task.EMBEDDING, "input", ROUTING, EmbeddingInput(("a", "bcd")), 4)
    made = texts.to_spec(CALLER, None, deadline_s=1.0)
    assert made.task is Task.EMBEDDING
    assert made.units_max.input_tokens >= 4
    order = PlainOrder(Task.IMAGE_CLASSIFICATION, "image", ROUTING, ImageInput(b"x"), 1)
    image = order.to_spec(CALLER, None, deadline_s=1.0)
    assert (image.task, image.units_max.images) == (Task.IMAGE_CLASSIFICATION, 1)


def test_more_text_than_a_job_can_carry_is_refused() -> None:
    check_text_size(PAYLOAD_BYTES_MAX // 2, "input")
    with pytest.raises(ApiError) as caught:
        check_text_size(PAYLOAD_BYTES_MAX, "input")
    assert (caught.value.problem.status, caught.value.problem.param) == (413, "input")

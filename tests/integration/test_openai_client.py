"""The stock `openai` Python client against the gateway, sync and async.

Tests that take `api` hold for any market, and are run against a scripted and a real one; those that
take `served` script what goes wrong.
"""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import openai
import pydantic
import pytest
import trio
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from PIL import Image

from coordinator.buyer.errors import JobFailed
from protocol.errors import Code
from tests.coordinator.gateway.fake_market import LIMITED_KEY, Script
from tests.integration.conftest import RunningMarket
from tests.integration.openai_api import WITHIN_S, Api, Served, served_gateway

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running


@pytest.fixture(
    params=["scripted", pytest.param("real", marks=[pytest.mark.models, pytest.mark.slow])]
)
def api(request: pytest.FixtureRequest) -> Api:
    if request.param == "scripted":
        served: Served = request.getfixturevalue("served")
        return served.api
    market: RunningMarket = request.getfixturevalue("market")
    return Api(
        url=market.http,
        key=market.api_key,
        chat_model="smollm2-135m-instruct",
        embedding_model="all-minilm-l6-v2",
        image_model="efficientnet-lite0",
    )


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    with OpenAI(base_url=api.base_url, api_key=api.key, timeout=WITHIN_S) as stock:
        yield stock


@pytest.fixture
def scripted(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=served.api.base_url, api_key=served.api.key, timeout=WITHIN_S) as stock:
        yield stock


# What any market does.


def test_chat(api: Api, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=api.chat_model, messages=MESSAGES, max_tokens=16, temperature=0
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint
    digest = client.models.retrieve(api.chat_model).model_dump()["manifest_digest"]
    assert digest.startswith(answer.system_fingerprint)


def test_chat_streams(api: Api, client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=api.chat_model,
        messages=MESSAGES,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] in ("stop", "length")
    assert not any(reasons[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_completions_whole_and_streamed(api: Api, client: OpenAI) -> None:
    answer = client.completions.create(model=api.chat_model, prompt="Once upon", max_tokens=8)
    assert answer.choices[0].text
    stream = client.completions.create(
        model=api.chat_model, prompt="Once upon", max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream)


def test_embeddings_as_the_client_asks_by_default_and_as_floats(api: Api, client: OpenAI) -> None:
    texts = ["a cat", "a dog", "a stone"]
    encoded = client.embeddings.create(model=api.embedding_model, input=texts)
    plain = client.embeddings.create(
        model=api.embedding_model, input=texts, encoding_format="float"
    )
    assert [item.index for item in encoded.data] == [0, 1, 2]
    for one, other in zip(encoded.data, plain.data, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    assert encoded.usage.prompt_tokens > 0


def test_models(api: Api, client: OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {api.chat_model, api.embedding_model, api.image_model} <= listed
    assert client.models.retrieve(api.image_model).id == api.image_model


def test_headers_are_there_for_who_asks(api: Api, client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=api.chat_model, messages=MESSAGES, max_tokens=4
    )
    assert raw.headers["x-capacloud-node"]
    assert int(raw.headers["x-capacloud-amount-nano"]) >= 0
    assert raw.request_id == raw.headers["x-request-id"]


def test_images_through_the_clients_own_transport(api: Api, client: OpenAI) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 120, 10)).save(buffer, "PNG")
    answer = client.post(
        "/images/classifications",
        cast_to=dict[str, object],
        body={
            "model": api.image_model,
            "image": base64.b64encode(buffer.getvalue()).decode(),
            "top_k": 2,
        },
    )
    assert isinstance(answer["data"], list)
    assert len(answer["data"]) == 2


def test_an_unknown_model_is_not_found(api: Api, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(api: Api) -> None:
    with (
        OpenAI(base_url=api.base_url, api_key="sk-wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_bad_input_is_a_bad_request_that_names_the_parameter(api: Api, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=api.chat_model, messages=MESSAGES, n=9)
    assert caught.value.param == "n"


def test_a_prompt_beyond_the_context_is_a_bad_request(api: Api, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=api.chat_model, messages=[{"role": "user", "content": "word " * 200_000}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_the_async_client_under_asyncio(api: Api) -> None:
    async def talk() -> str:
        async with AsyncOpenAI(base_url=api.base_url, api_key=api.key) as stock:
            stream = await stock.chat.completions.create(
                model=api.chat_model, messages=MESSAGES, max_tokens=16, stream=True
            )
            return "".join(
                [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            )

    assert asyncio.run(talk())


async def test_the_async_client_under_trio(api: Api) -> None:
    answers = []

    async def ask(stock: AsyncOpenAI) -> None:
        answers.append(
            await stock.chat.completions.create(
                model=api.chat_model, messages=MESSAGES, max_tokens=8
            )
        )

    async with (
        AsyncOpenAI(base_url=api.base_url, api_key=api.key) as stock,
        trio.open_nursery() as nursery,
    ):
        for _ in range(8):
            nursery.start_soon(ask, stock)
    assert all(answer.choices[0].message.content for answer in answers)


# What goes wrong, by script.


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.OUT_OF_FUNDS, openai.APIStatusError),
        (Code.UNKNOWN_ACCOUNT, openai.PermissionDeniedError),
        (Code.INVALID_INPUT, openai.BadRequestError),
        (Code.NO_NODE_FITS, openai.InternalServerError),
        (Code.DEADLINE_EXCEEDED, openai.InternalServerError),
    ],
)
def test_a_failure_that_a_retry_does_not_help_is_asked_once(
    served: Served, scripted: OpenAI, code: Code, kind: type[openai.APIStatusError]
) -> None:
    served.market.script = Script(failure=JobFailed("no", code=code))
    with pytest.raises(kind):
        scripted.chat.completions.create(model=served.api.chat_model, messages=MESSAGES)
    assert len(served.market.specs) == 1


def test_a_busy_market_is_asked_again_when_it_said(served: Served, scripted: OpenAI) -> None:
    served.market.script = Script(failure=JobFailed("", code=Code.BUSY, retry_after_ms=1))
    with pytest.raises(openai.RateLimitError):
        scripted.chat.completions.create(model=served.api.chat_model, messages=MESSAGES)
    assert len(served.market.specs) == 3


def test_an_answer_that_was_billed_in_part_is_not_bought_again(
    served: Served, scripted: OpenAI
) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, delivered=True, amount_nano=5)
    served.market.script = Script(failure=failure, failure_after=2)
    with pytest.raises(openai.InternalServerError):
        scripted.chat.completions.create(model=served.api.chat_model, messages=MESSAGES)
    assert len(served.market.specs) == 1


def test_a_cut_stream_raises_after_its_text(served: Served, scripted: OpenAI) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, delivered=True)
    served.market.script = Script(failure=failure, failure_after=2)
    stream = scripted.chat.completions.create(
        model=served.api.chat_model, messages=MESSAGES, stream=True
    )
    texts: list[str] = []

    def read() -> None:
        for chunk in stream:
            texts.extend(choice.delta.content or "" for choice in chunk.choices)

    with pytest.raises(openai.APIError) as caught:
        read()
    assert "".join(texts) == "Hello"
    assert caught.value.code == "node_lost"
    assert len(served.market.specs) == 1


def test_a_rate_limit_is_a_rate_limit_error(served: Served) -> None:
    with OpenAI(base_url=served.api.base_url, api_key=LIMITED_KEY, max_retries=0) as limited:
        limited.models.list()
        limited.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            limited.models.list()
    assert caught.value.response.headers["retry-after"]


def test_closing_a_stream_cancels_the_job(served: Served, scripted: OpenAI) -> None:
    served.market.script = Script(gate_before=2)
    stream = scripted.chat.completions.create(
        model=served.api.chat_model, messages=MESSAGES, stream=True
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    served.wait(served.market.cancellation)
    assert (served.market.cancelled, served.market.finished) == (1, 0)


# What a model does of it: on the real market only.


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    market: RunningMarket = request.getfixturevalue("market")
    with OpenAI(base_url=f"{market.http}/v1", api_key=market.api_key, timeout=60) as stock:
        yield stock


CHAT = "smollm2-135m-instruct"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather in Paris?"}]


@pytest.mark.models
@pytest.mark.slow
def test_a_required_tool_is_called_by_its_schema(real: OpenAI) -> None:
    answer = real.chat.completions.create(
        model=CHAT,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    # The result goes back, and the conversation goes on.
    later = real.chat.completions.create(
        model=CHAT,
        messages=[
            *ASKED,
            {"role": "assistant", "tool_calls": [call.model_dump()]},  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"},
        ],
        tools=[WEATHER],
        max_tokens=16,
    )
    assert later.usage is not None
    assert answer.usage is not None
    assert later.usage.prompt_tokens > answer.usage.prompt_tokens


@pytest.mark.models
@pytest.mark.slow
def test_calls_of_a_stream_are_those_of_the_whole_answer(real: OpenAI) -> None:
    with real.chat.completions.stream(
        model=CHAT,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    ) as stream:
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}


class Facts(pydantic.BaseModel):
    """What an answer shall have."""

    name: Annotated[str, pydantic.Field(max_length=20)]
    year: Annotated[int, pydantic.Field(ge=1, le=2_000)]


@pytest.mark.models
@pytest.mark.slow
def test_an_answer_has_the_form_that_was_asked_for(real: OpenAI) -> None:
    parsed = real.chat.completions.parse(
        model=CHAT,
        messages=[{"role": "user", "content": "Who painted the Mona Lisa, and when?"}],
        response_format=Facts,
        max_tokens=80,
        temperature=0,
    )
    facts = parsed.choices[0].message.parsed
    assert isinstance(facts, Facts)
    assert 1 <= facts.year <= 2_000


@pytest.mark.models
@pytest.mark.slow
def test_scores_choices_and_tokens_of_a_real_model(real: OpenAI) -> None:
    answer = real.chat.completions.create(
        model=CHAT, messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, seed=1, max_tokens=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        scores = choice.logprobs.content or []
        spelled = b"".join(bytes(score.bytes or ()) for score in scores).decode()
        assert spelled.startswith(choice.message.content or "")
        assert all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)
    echoed = real.completions.create(
        model=CHAT, prompt="The capital of France is", echo=True, logprobs=1, max_tokens=1
    )
    text = echoed.choices[0]
    assert text.text.startswith("The capital of France is")
    assert text.logprobs is not None
    assert "".join(text.logprobs.tokens or ()) == text.text
    assert text.logprobs.model_dump()["token_logprobs"][0] is None
    text_body = {"model": CHAT, "prompt": "The capital"}
    tokens: Any = real.post("/tokenize", cast_to=object, body=text_body)
    tokens_body = {"model": CHAT, "tokens": tokens["tokens"]}
    back: Any = real.post("/detokenize", cast_to=object, body=tokens_body)
    assert back == {"prompt": "The capital"}


@pytest.mark.models
@pytest.mark.slow
def test_rerank_and_dimensions_of_a_real_model(real: OpenAI) -> None:
    ranked: Any = real.post(
        "/rerank",
        cast_to=object,
        body={
            "model": "all-minilm-l6-v2",
            "query": "Which animal purrs?",
            "documents": ["Trains leave at nine.", "A cat purrs when it is content."],
        },
    )
    assert ranked["results"][0]["index"] == 1
    own = real.embeddings.create(model="all-minilm-l6-v2", input="a", dimensions=384)
    assert len(own.data[0].embedding) == 384
    with pytest.raises(openai.BadRequestError, match="384"):
        real.embeddings.create(model="all-minilm-l6-v2", input="a", dimensions=256)

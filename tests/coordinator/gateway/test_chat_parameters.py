"""What chats may be asked for: each parameter is honoured, refused by name, or known to change
nothing."""

import json
from typing import Any

import pytest

from coordinator.buyer.errors import JobFailed
from coordinator.gateway.http.openai.names import IGNORED, NEUTRAL
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import ChatMessage, FormatKind, OutputFormat, TokenBias
from protocol.limits import TOKENS_MAX
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import MESSAGES, PATH, asked, body, error_of

SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {}}}
OBJECT = OutputFormat(FormatKind.JSON_OBJECT)
BY_SCHEMA = OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":")))
CHOICE = OutputFormat(FormatKind.GRAMMAR, 'start: "a" | "b \\"c\\""')


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"presence_penalty": -2}, "presence_penalty", -2.0),
        ({"frequency_penalty": 0.5}, "frequency_penalty", 0.5),
        ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"logit_bias": {"5": -100, "0": 1}}, "logit_bias", (TokenBias(5, -100), TokenBias(0, 1))),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"cache_salt": "mine"}, "cache_salt", "mine"),
        ({"share_cache": True}, "shares_cache", True),
        ({"stop_token_ids": [2, 3]}, "stop_token_ids", (2, 3)),
        ({"include_stop_str_in_output": True, "stop": "END"}, "includes_stop", True),
        ({"top_p": 0}, "top_p", 1e-9),
        ({"top_k": -1}, "top_k", 0),
        ({"max_tokens": -1}, "max_tokens", 2_047),
        ({"max_tokens": 32_000}, "max_tokens", 2_047),
        ({"max_completion_tokens": 2**31}, "max_tokens", 2_047),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ({"top_logprobs": 0}, "logprobs", None),
        ({"response_format": {"type": "json_object"}}, "format", OBJECT),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            "format",
            BY_SCHEMA,
        ),
        ({"guided_json": SCHEMA}, "format", BY_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "format", BY_SCHEMA),
        ({"guided_regex": "a+"}, "format", OutputFormat(FormatKind.REGEX, "a+")),
        ({"guided_choice": ["a", 'b "c"']}, "format", CHOICE),
        (
            {"guided_grammar": "start: /a/"},
            "format",
            OutputFormat(FormatKind.GRAMMAR, "start: /a/"),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "format", BY_SCHEMA),
        ({"structured_outputs": {"choice": ["a", 'b "c"']}}, "format", CHOICE),
        ({"structured_outputs": {"json_object": True}}, "format", OBJECT),
        ({"structured_outputs": {}}, "format", None),
        (
            {"response_format": {"type": "text"}, "guided_regex": "a"},
            "format",
            OutputFormat(FormatKind.REGEX, "a"),
        ),
        ({"chat_template_kwargs": {"a": True}}, "template_arguments", '{"a": true}'),
        ({"reasoning_effort": "low"}, "template_arguments", '{"reasoning_effort": "low"}'),
    ],
)
def test_a_parameter_reaches_the_engine(
    gateway: Harness, change: dict[str, Any], name: str, value: Any
) -> None:
    response = gateway.post(PATH, body(**change))
    assert response.status_code == 200, response.text
    assert getattr(asked(gateway), name) == value


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"min_p": 0.1}, Feature.SAMPLING),
        ({"logit_bias": {"5": 1}}, Feature.SAMPLING),
        ({"min_tokens": 3}, Feature.SAMPLING),
        ({"logprobs": True}, Feature.LOGPROBS),
        ({"response_format": {"type": "json_object"}}, Feature.STRUCTURED_OUTPUTS),
        ({"guided_regex": "a+"}, Feature.STRUCTURED_OUTPUTS),
    ],
)
def test_only_a_node_that_honours_it_is_asked(
    gateway: Harness, change: dict[str, Any], feature: Feature
) -> None:
    gateway.post(PATH, body(**change))
    assert gateway.market.specs[-1].constraints.features == (feature.value,)
    gateway.market.features -= {feature}
    response = gateway.post(PATH, body(**change))
    assert response.status_code == 400
    assert "does not support" in error_of(response)["message"]
    assert len(gateway.market.specs) == 1


def test_neutral_values_ask_for_nothing(gateway: Harness) -> None:
    gateway.market.features = frozenset()
    neutral = {
        "min_p": 0,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "min_tokens": 0,
        "stop_token_ids": [],
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "best_of": 1,
        "n": 1,
        "add_generation_prompt": True,
        "continue_final_message": False,
    }
    assert gateway.post(PATH, body(**neutral)).status_code == 200


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_changes_no_answer_is_ignored(gateway: Harness, name: str) -> None:
    assert gateway.post(PATH, body(**{name: {"any": ["thing"]}})).status_code == 200


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_is_not_honoured_is_refused_by_name(gateway: Harness, name: str, path: str) -> None:
    request = body() if path == PATH else {"model": "tiny-chat", "prompt": "x"}
    response = gateway.post(path, request | {name: "something"})
    assert response.status_code == 400
    assert error_of(response)["param"] == name
    for neutral in (*NEUTRAL[name], None):
        if name != "add_special_tokens":
            assert gateway.post(path, request | {name: neutral}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("n_predict", "num_predict", "max_new_tokens", "maxTokens", "stop_sequences", "num_ctx"),
        *("ebnf", "regex", "json_mode", "mirostat_tau", "tfs_z", "options", "think", "thinking"),
        *("enable_thinking", "random_seed", "extra_body", "data_sources", "preset", "penalty"),
        *("custom_params", "no_repeat_ngram_size", "system", "input", "instructions", "images"),
    ],
)
def test_a_name_that_is_not_known_is_refused(gateway: Harness, name: str, stream: bool) -> None:
    response = gateway.post(PATH, body(stream=stream, **{name: 1}))
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]
    assert gateway.market.specs == []
    assert gateway.post(PATH, body(**{name: None})).status_code == 200


def test_a_misspelt_name_is_told_the_right_one(gateway: Harness) -> None:
    error = error_of(gateway.post(PATH, body(max_token=5)))
    assert "did you mean max_tokens?" in error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [5]}, "guided_choice[0]"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "x" * 70_000}, "guided_regex"),
        ({"guided_regex": "a", "guided_grammar": "b"}, "guided_grammar"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": {str(n): 1 for n in range(1_025)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": "2"}, "stop_token_ids"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "x" * 70_000}}, "chat_template_kwargs"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": 1}},
            "stream_options.continuous_usage_stats",
        ),
    ],
)
def test_bad_values_are_refused_by_name(
    gateway: Harness, change: dict[str, Any], param: str
) -> None:
    response = gateway.post(PATH, body(**change))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert gateway.market.specs == []


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "objekt"}, ".type"),
        ({"type": ["string", "text"]}, ".type"),
        ({"properties": []}, ".properties"),
        ({"properties": {"a": 5}}, ".properties.a"),
        ({"properties": {"a": {"items": {"type": 5}}}}, ".properties.a.items.type"),
        ({"anyOf": []}, ".anyOf"),
        ({"anyOf": [{}, {"enum": []}]}, ".anyOf[1].enum"),
        ({"required": "a"}, ".required"),
        ({"minimum": "0"}, ".minimum"),
        ({"minLength": -1}, ".minLength"),
        ({"pattern": 5}, ".pattern"),
        ({"$ref": "https://example.com/schema"}, ".$ref"),
        ({"$ref": "#/$defs/missing"}, ".$ref"),
        ({"additionalProperties": "no"}, ".additionalProperties"),
    ],
)
def test_a_schema_that_is_none_is_told_where(
    gateway: Harness, schema: dict[str, Any], where: str
) -> None:
    response = gateway.post(PATH, body(guided_json=schema))
    assert response.status_code == 400
    assert error_of(response)["param"] == f"guided_json{where}"


def test_a_schema_may_be_recursive(gateway: Harness) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "items": {"items": True}}}
    assert gateway.post(PATH, body(guided_json=tree)).status_code == 200


def test_a_form_that_a_node_cannot_enforce_is_what_the_error_names(gateway: Harness) -> None:
    failure = JobFailed("the format is too large", code=Code.INVALID_INPUT)
    gateway.market.script = Script(failure=failure)
    error = error_of(gateway.post(PATH, body(guided_regex="a{9999}")))
    assert (error["param"], error["message"]) == ("response_format", "the format is too large")
    tool = {"type": "function", "function": {"name": "f"}}
    error = error_of(gateway.post(PATH, body(tools=[tool], tool_choice="required")))
    assert error["param"] == "tools"
    assert error_of(gateway.post(PATH, body()))["param"] == "messages"


def test_only_json_goes_with_tools(gateway: Harness) -> None:
    """An answer is then a call, or has the form."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    forms: list[dict[str, Any]] = [
        {"guided_json": {}},
        {"response_format": {"type": "json_object"}},
    ]
    for form in forms:
        assert gateway.post(PATH, body(tools=tools, **form)).status_code == 200
        assert asked(gateway).tools
        assert asked(gateway).format is not None
    request = body(tools=tools, guided_regex="a")
    error = error_of(gateway.post(PATH, request))
    assert error["param"] == "guided_regex"
    assert "tool_choice" in error["message"]
    assert gateway.post(PATH, request | {"tool_choice": "none"}).status_code == 200


PREFILL = [*MESSAGES, {"role": "assistant", "content": "1. Red\n2."}]


def test_the_assistants_turn_is_continued_when_asked(gateway: Harness) -> None:
    for change in (
        {"continue_final_message": True, "add_generation_prompt": False},
        {"continue_final_message": True},
        {"messages": [*MESSAGES, PREFILL[1] | {"prefix": True}]},
        {"messages": [*MESSAGES, PREFILL[1] | {"partial": True}]},
    ):
        assert gateway.post(PATH, body(messages=PREFILL) | change).status_code == 200
        assert asked(gateway).continues_final_message
        assert asked(gateway).messages[-1] == ChatMessage("assistant", "1. Red\n2.")
    gateway.post(PATH, body(messages=PREFILL))
    assert not asked(gateway).continues_final_message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"continue_final_message": True, "messages": MESSAGES}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt",
        ),
        ({"messages": [{"role": "user", "content": "a", "prefix": True}]}, "messages[0]"),
    ],
)
def test_a_turn_that_cannot_be_continued(
    gateway: Harness, change: dict[str, Any], param: str
) -> None:
    response = gateway.post(PATH, body(messages=PREFILL) | change)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    ("kind", "words"),
    [("image_url", "does not support images"), ("input_audio", "does not support audio")],
)
def test_what_is_no_text_is_refused_in_the_usual_words(
    gateway: Harness, kind: str, words: str
) -> None:
    content = [{"type": "text", "text": "What is it?"}, {"type": kind, kind: {"url": "x"}}]
    response = gateway.post(PATH, body(messages=[{"role": "user", "content": content}]))
    assert response.status_code == 400
    assert words in error_of(response)["message"]
    assert error_of(response)["param"] == "messages[0].content[1].type"


@pytest.mark.parametrize("messages", [[], None, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_looked_at_before_the_model(
    gateway: Harness, messages: Any, stream: bool
) -> None:
    response = gateway.post(PATH, {"model": "gpt-9", "messages": messages, "stream": stream})
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


def test_tools_count_towards_what_is_held(gateway: Harness) -> None:
    plain, told = body(), body(tools=[{"type": "function", "function": {"name": "f"}}])
    gateway.post(PATH, plain)
    gateway.post(PATH, told)
    less, more = (spec.units_max.input_tokens for spec in gateway.market.specs)
    assert less < more < TOKENS_MAX

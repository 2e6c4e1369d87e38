"""Answers that must match a format, or must call a tool, on a tiny random model."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capanode.engines.base import EngineRefusal
from capanode.engines.causal_lm import CausalLM
from capanode.engines.grammar import GrammarCompiler
from protocol.errors import Code
from protocol.generation import (
    ChatMessage,
    FormatKind,
    GenerationInput,
    OutputFormat,
    TokenBias,
    Tool,
    ToolChoice,
)
from tests.capanode.engines.tiny_models import Transcript, load, run, write_llama

PROMPT = tuple(b"What is it?")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
PERSON = OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA))
CLOSED = {"additionalProperties": False}
CITY = {"properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
NUMBER = {
    "$defs": {"n": {"enum": [7]}},
    "properties": {"n": {"$ref": "#/$defs/n"}},
    "required": ["n"],
    **CLOSED,
}
TOOLS = (Tool("weather", "", json.dumps(CITY)), Tool("stop_all", "", json.dumps(NUMBER)))
PATTERNS = [{"pattern": f".{{{n}}}a"} for n in range(1, 300)]
CHAIN = {
    "$defs": {
        **{f"d{n}": {"pattern": f".{{{n}}}a", "$ref": f"#/$defs/d{n + 1}"} for n in range(200)},
        "d200": {"pattern": "q"},
    },
    "$ref": "#/$defs/d0",
    "type": "string",
}
BOTH = " & ".join(f"/(.*x{{{n}}}.*y){{{n}}}.*/" for n in range(2, 40))
MANY = {"anyOf": [{"properties": {f"p{n}": {"pattern": "(a|b)*a.{9}"}}} for n in range(900)]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load(write_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=2048))


def ask(engine: CausalLM, job_id: str = "job", **options: Any) -> Transcript:
    options = {"max_tokens": 400, "prompt_tokens": PROMPT, "temperature": 1.0, **options}
    engine.submit(job_id, GenerationInput(**options))
    return run(engine)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ignores_end", [False, True])
def test_an_answer_matches_its_schema(engine: CausalLM, seed: int, ignores_end: bool) -> None:
    transcript = ask(engine, format=PERSON, seed=seed, ignore_eos=ignores_end)
    value = json.loads(transcript.text("job"))
    assert set(value) == {"name", "age", "kind"}
    assert value["kind"] in ("cat", "dog")
    assert transcript.finished("job").reason == "stop"


def test_an_answer_matches_its_expression_or_grammar(engine: CausalLM) -> None:
    digits = OutputFormat(FormatKind.REGEX, r"[0-9]{3}-[ab]+;")
    assert re.fullmatch(r"[0-9]{3}-[ab]+;", ask(engine, format=digits).text("job"))
    lark = OutputFormat(FormatKind.GRAMMAR, 'start: "x" NUMBER "y"\nNUMBER: /[0-9]{2}/')
    assert re.fullmatch(r"x[0-9]{2}y", ask(engine, format=lark).text("job"))


def test_a_json_object_is_one(engine: CausalLM) -> None:
    transcript = ask(engine, format=OutputFormat(FormatKind.JSON_OBJECT), seed=3)
    text = transcript.text("job")
    assert text.startswith("{")
    if transcript.finished("job").reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_complete_format_ends_whatever_else_is_asked(engine: CausalLM) -> None:
    three = OutputFormat(FormatKind.REGEX, "abc")
    for options in (
        {"min_tokens": 50},
        {"ignore_eos": True},
        {"min_tokens": 50, "ignore_eos": True},
    ):
        transcript = ask(engine, format=three, **options)
        assert (transcript.text("job"), transcript.finished("job").reason) == ("abc", "stop")


def test_an_answer_that_may_end_goes_on_to_its_least_tokens(engine: CausalLM) -> None:
    long = OutputFormat(FormatKind.REGEX, "[ab]*")
    transcript = ask(engine, format=long, min_tokens=30, max_tokens=60)
    assert len(transcript.tokens("job")) >= 30
    assert set(transcript.text("job")) <= {"a", "b"}


def test_a_stop_string_ends_a_format_before_it_is_complete(engine: CausalLM) -> None:
    transcript = ask(engine, format=OutputFormat(FormatKind.REGEX, "abcdef"), stop=("d",))
    assert (transcript.text("job"), transcript.finished("job").reason) == ("abc", "stop")


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (FormatKind.JSON_SCHEMA, "{", "not a JSON object"),
        (FormatKind.JSON_SCHEMA, "[" * 60_000, "not a JSON object"),
        (FormatKind.JSON_SCHEMA, '{"type": "secret"}', "wrong"),
        (FormatKind.JSON_SCHEMA, '{"$ref": "http://example.com/x"}', "refers to what is not"),
        (FormatKind.JSON_SCHEMA, '{"not": {"type": "string"}}', "keyword"),
        (FormatKind.REGEX, "(", "wrong"),
        (FormatKind.GRAMMAR, "start: nothing", "wrong"),
    ],
)
def test_a_format_that_cannot_be_enforced_is_refused(
    engine: CausalLM, kind: FormatKind, text: str, sentence: str
) -> None:
    with pytest.raises(EngineRefusal, match=sentence) as refusal:
        ask(engine, format=OutputFormat(kind, text))
    assert refusal.value.code is Code.INVALID_INPUT
    assert engine.is_idle


@pytest.mark.parametrize(
    "wanted",
    [
        OutputFormat(FormatKind.REGEX, r"((a{1,100}){1,100}){1,100}"),
        OutputFormat(FormatKind.REGEX, r"(.*a){50}.{0,2000}(.*b){50}"),
        OutputFormat(FormatKind.REGEX, "|".join(f"(a|b)*a(a|b){{{n}}}" for n in range(1, 900))),
        OutputFormat(FormatKind.JSON_SCHEMA, '{"allOf":[' * 300 + "{}" + "]}" * 300),
        OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(MANY)),
        OutputFormat(FormatKind.GRAMMAR, 'start: a\na: "a" a a | "b" | a "c" | '),
        # Each of these took minutes before it was bounded.
        OutputFormat(FormatKind.GRAMMAR, f"start: A\nA: {BOTH}"),
        OutputFormat(FormatKind.GRAMMAR, "start: A\nA: ~/(.*a.{300}b.*)/ & /[ab]{2000}/"),
        OutputFormat(
            FormatKind.GRAMMAR,
            "start: a\na: %json " + json.dumps({"type": "string", "allOf": PATTERNS}),
        ),
        OutputFormat(FormatKind.JSON_SCHEMA, json.dumps({"type": "string", "allOf": PATTERNS})),
        OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(CHAIN)),
        OutputFormat(FormatKind.JSON_SCHEMA, '{"type": "integer", "minimum": 1' + "0" * 3000 + "}"),
    ],
)
def test_no_format_holds_the_engine_up(engine: CausalLM, wanted: OutputFormat) -> None:
    """It is refused, ends its own job, or is enforced in little time."""
    began_s = time.perf_counter()
    with suppress(EngineRefusal):
        engine.submit("job", GenerationInput(max_tokens=40, prompt_tokens=PROMPT, format=wanted))
    slowest = time.perf_counter() - began_s
    while not engine.is_idle:
        began_s = time.perf_counter()
        engine.step()
        slowest = max(slowest, time.perf_counter() - began_s)
    assert slowest < 2.0


def test_what_takes_long_to_read_can_be_read_on_another_thread(engine: CausalLM) -> None:
    asked = GenerationInput(max_tokens=400, prompt_tokens=PROMPT, format=PERSON, seed=4)
    at_once = ask(engine, format=PERSON, seed=4)
    read = engine.slow_reading(asked)
    assert read is not None
    with ThreadPoolExecutor(1) as thread:
        ready = thread.submit(read).result()
        engine.submit("job", ready)
        assert run(engine).tokens("job") == at_once.tokens("job")
        wrong = replace(asked, format=OutputFormat(FormatKind.REGEX, "("))
        read = engine.slow_reading(wrong)
        assert read is not None
        with pytest.raises(EngineRefusal, match="wrong"):
            thread.submit(read).result()
    assert engine.slow_reading(replace(asked, format=None)) is None
    assert engine.slow_reading(replace(asked, format=None, prompt_tokens=(), prompt="x" * 20_000))


def call_names(text: str) -> list[str]:
    calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL)
    assert text == "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    names = []
    for call in map(json.loads, calls):
        assert set(call) == {"name", "arguments"}
        names.append(call["name"])
        assert call["arguments"] in ({"city": "Oslo"}, {"city": "Rome"}, {"n": 7})
    return names


@pytest.mark.parametrize("seed", range(3))
def test_a_required_tool_is_called(engine: CausalLM, seed: int) -> None:
    chat = (ChatMessage("user", "hi"),)
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": ToolChoice.REQUIRED, "seed": seed}
    options |= {"prompt_tokens": (), "messages": chat, "max_tokens": 900}
    one = ask(engine, **options, parallel_tool_calls=False)
    assert len(call_names(one.text("job"))) == 1
    many = ask(engine, **options)
    if many.finished("job").reason == "stop":
        assert set(call_names(many.text("job"))) <= {"weather", "stop_all"}
    options["tools"] = TOOLS[:1]
    named = ask(engine, **options, parallel_tool_calls=False)
    assert call_names(named.text("job")) == ["weather"]


def test_an_answer_calls_or_has_the_form_where_it_may_do_either(engine: CausalLM) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "format": PERSON, "parallel_tool_calls": False}
    options |= {"prompt_tokens": (), "messages": (ChatMessage("user", "hi"),), "max_tokens": 900}
    # The model would rather write the one or the other sign first.
    towards = {sign: (TokenBias(ord(sign), 100),) for sign in "<{"}
    called = ask(engine, logit_bias=towards["<"], **options).text("job")
    assert len(call_names(called)) == 1
    formed = ask(engine, logit_bias=towards["{"], **options).text("job")
    assert set(json.loads(formed)) == {"name", "age", "kind"}
    options["format"] = OutputFormat(FormatKind.REGEX, "a")
    with pytest.raises(EngineRefusal, match="JSON"):
        ask(engine, **options)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        ("[TOOL_CALLS]", r'\[TOOL_CALLS\]\[(\{"name": "weather", "arguments": \{.*\}\}(, )?)+\]'),
        ("<|python_tag|>", r'\{"name": "weather", "parameters": \{.*\}\}'),
    ],
)
def test_calls_are_written_in_the_models_own_form(
    tmp_path: Path, template: str, answer: str
) -> None:
    source = "{% if tools %}" + template + "{% endif %}{{ messages[0].content }}"
    engine = load(write_llama(tmp_path, chat_template=source))
    transcript = ask(
        engine,
        prompt_tokens=(),
        messages=(ChatMessage("user", "hi"),),
        tools=TOOLS[:1],
        tool_choice=ToolChoice.REQUIRED,
        parallel_tool_calls=False,
    )
    assert re.fullmatch(answer, transcript.text("job"), re.DOTALL)


def test_a_tool_gets_no_arguments_that_it_does_not_name(engine: CausalLM) -> None:
    for schema, empty in (("", True), ('{"properties": {}}', True), ('{"type": "object"}', False)):
        transcript = ask(
            engine,
            prompt_tokens=(),
            messages=(ChatMessage("user", "hi"),),
            tools=(Tool("f", "", schema),),
            tool_choice=ToolChoice.REQUIRED,
            parallel_tool_calls=False,
            max_tokens=120,
        )
        is_empty = re.search(r'"arguments": \{\s*\}\}', transcript.text("job")) is not None
        assert is_empty is empty


def test_a_required_tool_needs_tools(engine: CausalLM) -> None:
    with pytest.raises(EngineRefusal, match="no tools"):
        ask(engine, tool_choice=ToolChoice.REQUIRED)


def test_a_format_holds_after_reasoning_that_the_template_opened(tmp_path: Path) -> None:
    source = "{{ messages[0].content.split('</think>')[0] }}<think>\n"
    engine = load(write_llama(tmp_path, chat_template=source))
    closing = "</think>"
    transcript = ask(
        engine,
        prompt_tokens=(),
        messages=(ChatMessage("user", "hi"),),
        format=OutputFormat(FormatKind.REGEX, "yes"),
        prefix_tokens=tuple(f"well{closing}".encode()),
    )
    assert transcript.text("job") == "yes"
    assert engine.info.features


def test_rows_with_a_format_leave_others_alone(engine: CausalLM) -> None:
    free = {"max_tokens": 20, "prompt_tokens": PROMPT, "seed": 5, "ignore_eos": True}
    engine.submit("free", GenerationInput(**free))  # type: ignore[arg-type]  # plain options
    alone = run(engine).tokens("free")
    engine.submit("free", GenerationInput(**free))  # type: ignore[arg-type]  # plain options
    assert ask(engine, "bound", format=PERSON, seed=1).tokens("free") == alone


def test_a_prefix_that_does_not_match_is_refused(engine: CausalLM) -> None:
    with pytest.raises(EngineRefusal, match="answered before"):
        ask(engine, format=PERSON, prefix_tokens=tuple(b"nonsense"))


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a&b" ("~" | /[&~]/)* # & ~\n',
        "start: A ~ 2..3 // & is a sign\nA: /x/",
        'start: a "&"\na: %json {"enum": ["x"]}',
    ],
)
def test_signs_of_combination_may_stand_in_texts(engine: CausalLM, grammar: str) -> None:
    transcript = ask(engine, format=OutputFormat(FormatKind.GRAMMAR, grammar), max_tokens=30)
    assert transcript.finished("job")


def test_what_references_and_few_combinations_need_is_taken(engine: CausalLM) -> None:
    base = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    more = {"properties": {"c": {"enum": [2]}}, "required": ["c"]}
    schema = {"$defs": {"b": base}, "allOf": [{"$ref": "#/$defs/b"}, more]}
    wanted = OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(schema))
    text = ask(engine, format=wanted, max_tokens=900, seed=8).text("job")
    assert '"a"' in text


def test_a_tokenizer_that_no_grammar_reads_leaves_a_model_without_formats(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path / "tokenizer.json"
    assert GrammarCompiler.load(path, vocab=9, end_tokens=frozenset({1})) is None

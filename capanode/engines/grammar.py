"""What an answer must match, enforced token by token: schemas, expressions and grammars, and the
calls of a required tool, by llguidance.

Schemas come from strangers. Reading one takes a fraction of a second at most and a step a few
milliseconds, by the limits below; what needs more is refused, or ends its own job.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from capanode.engines.base import EngineRefusal
from protocol.chat_formats import ChatFormat
from protocol.errors import Code
from protocol.generation import FormatKind, GenerationInput, OutputFormat, Tool, ToolChoice

# A few milliseconds each: 50,000 of the initial fuel, 14,000 lexer states or 20,000 items take one,
# as the library measures itself.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)

# The limits do not cover what two expressions have in common, if it is asked of many at once: that
# took minutes. So few schemas may be combined, and no expressions of a grammar.
_COMBINED_MAX = 8
_BESIDE_REF = frozenset(
    {
        "$ref",
        "$defs",
        "definitions",
        "$schema",
        "$id",
        "title",
        "description",
        "default",
        "examples",
    }
)
_GRAMMAR_TEXTS = re.compile(r'"(?:\\.|[^"\\])*"|/(?!/)(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_COMBINES = re.compile(r"&|~(?!\s*\d)")

# A model may lay its JSON out, but small ones would go on with white space for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n\t]{0,32}"}

# More parallel calls are no plan.
_CALLS_MAX = 16


# Older ones take our JSON options otherwise, and read less of a grammar.
_LIBRARY_MIN = (1, 9)


def _library_version() -> tuple[int, ...]:
    return tuple(int(part) for part in version("llguidance").split(".")[:2])


class GrammarCompiler:
    """Reads what the inputs of one model ask for."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab

    @classmethod
    def load(
        cls, tokenizer: Path, *, vocab: int, end_tokens: frozenset[int]
    ) -> "GrammarCompiler | None":
        """None for a `tokenizer.json` of a kind that the library does not read, and where the
        library is one that reads schemas otherwise (vLLM brings it)."""
        if _library_version() < _LIBRARY_MIN:
            return None
        ends = sorted(end_tokens) or None
        try:
            read = llguidance.LLTokenizer(str(tokenizer), n_vocab=vocab, eos_token=ends)
        except (ValueError, RuntimeError, OSError):
            return None
        return cls(read, vocab)

    def compile(
        self, job_input: GenerationInput, chat_format: ChatFormat | None, *, after: str = ""
    ) -> "Grammar | None":
        """None if the answer is free. `after` is a mark that the answer writes first, freely.

        Raises EngineRefusal.
        """
        text = self._grammar_text(job_input, chat_format)
        if text is None:
            return None
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            _refuse(matcher.get_error())
        return Grammar(matcher, self._vocab, after=after.encode())

    def _grammar_text(
        self, job_input: GenerationInput, chat_format: ChatFormat | None
    ) -> str | None:
        if job_input.tool_choice is ToolChoice.REQUIRED:
            if not job_input.tools or chat_format is None or not job_input.messages:
                raise EngineRefusal(
                    "a tool is required, and no tools or no messages are given",
                    code=Code.INVALID_INPUT,
                )
            lark = self._calls(job_input.tools, chat_format, job_input.parallel_tool_calls)
            return str(llguidance.LLMatcher.grammar_from_lark(f"start: calls\n{lark}"))
        if job_input.format is None:
            return None
        may_call = job_input.tools and job_input.tool_choice is ToolChoice.AUTO
        if not may_call or chat_format is None or not job_input.messages:
            return _format_text(job_input.format)
        # The model decides whether it calls; an answer that is no call has the form.
        answer = _schema_of(job_input.format)
        lark = self._calls(job_input.tools, chat_format, job_input.parallel_tool_calls)
        either = f"start: calls | answer\nanswer: %json {json.dumps(answer)}\n{lark}"
        return str(llguidance.LLMatcher.grammar_from_lark(either))

    def _calls(self, tools: tuple[Tool, ...], chat_format: ChatFormat, is_parallel: bool) -> str:
        """The rule of `calls`: one or more, each of a listed tool with arguments by its schema."""
        opened, closed = (self._mark(m) for m in (chat_format.call_open, chat_format.call_close))
        most = _CALLS_MAX if is_parallel and (chat_format.call_open or chat_format.is_list) else 1
        if chat_format.is_list:
            more = f'(", " call){{0,{most - 1}}}' if most > 1 else ""
            rules = [f'calls: {opened} "[" call {more} "]" {closed}']
            rules.append("call: " + " | ".join(f"tool_{n}" for n in range(len(tools))))
        else:
            around = (f'{opened} "\\n"', f'"\\n" {closed}') if opened else ("", "")
            more = f'("\\n" call){{0,{most - 1}}}' if most > 1 else ""
            rules = [f"calls: call {more}"]
            names = " | ".join(f"tool_{n}" for n in range(len(tools)))
            rules.append(f"call: {around[0]} ({names}) {around[1]}")
        for number, tool in enumerate(tools):
            head = f'{{"name": {json.dumps(tool.name)}, "{chat_format.arguments_key}": '
            rules.append(f'tool_{number}: {json.dumps(head)} args_{number} "}}"')
            rules.append(f"args_{number}: %json {json.dumps(_arguments_schema(tool))}")
        return "\n".join(rules)

    def _mark(self, mark: str) -> str:
        """As a literal, or as the special token that spells it."""
        tokens = self._tokenizer.tokenize_str(mark, parse_special=True) if mark else []
        if len(tokens) == 1 and self._tokenizer.is_special_token(tokens[0]):
            return f"<[{tokens[0]}]>"
        return json.dumps(mark) if mark else ""


class Grammar:
    """How far one answer has come in what it must match."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int, *, after: bytes) -> None:
        self._matcher, self._vocab = matcher, vocab
        self._after, self._seen = after, b""
        self._allowed: Tensor | None = None  # once it was asked for, until the next token

    @property
    def is_complete(self) -> bool:
        """Nothing can follow."""
        return not self._after and bool(self._matcher.is_stopped()) and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """It took too much work, or a token did not match."""
        return bool(self._matcher.is_error())

    def push(self, token: int, piece: bytes) -> None:
        """Take the answer's next token, which spells `piece`."""
        self._allowed = None
        if not self._after:
            self._matcher.consume_token(token)
            return
        self._seen = (self._seen + piece)[-len(self._after) - len(piece) :]
        if self._after in self._seen:
            self._after = b""

    def allowed(self) -> Tensor | None:
        """Which tokens may come next, as booleans [vocab]; None for all of them."""
        if self._after:
            return None
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(bits, count=self._vocab, bitorder="little")
            self._allowed = torch.from_numpy(allowed.view(np.bool_))
        return self._allowed


def _format_text(wanted: OutputFormat) -> str:
    matcher = llguidance.LLMatcher
    match wanted.kind:
        case FormatKind.JSON_OBJECT | FormatKind.JSON_SCHEMA:
            text = _json_grammar(_schema_of(wanted))
        case FormatKind.REGEX:
            text = matcher.grammar_from_regex(wanted.text)
        case FormatKind.GRAMMAR:
            _check_combinations(wanted.text)
            text = matcher.grammar_from_lark(wanted.text)
    return str(text)


def _schema_of(wanted: OutputFormat) -> dict[str, Any]:
    """Raises EngineRefusal for a form that is not JSON: it cannot stand beside calls."""
    if wanted.kind is FormatKind.JSON_OBJECT:
        return _with_options({"type": "object"})
    if wanted.kind is FormatKind.JSON_SCHEMA:
        return _with_options(_read_schema(wanted.text))
    raise EngineRefusal(
        "with tools that may be called, the format of an answer is JSON", code=Code.INVALID_INPUT
    )


def _json_grammar(schema: dict[str, Any]) -> str:
    try:
        plain = json.dumps(schema)
        return str(llguidance.LLMatcher.grammar_from_json_schema(plain))
    except (ValueError, RecursionError):  # A number beyond what the library reads, for one.
        raise EngineRefusal(
            "the JSON schema cannot be read: simplify it", code=Code.INVALID_INPUT
        ) from None


def _check_combinations(grammar: str) -> None:
    """Raises EngineRefusal."""
    has_schema = "%json" in grammar and ("allOf" in grammar or "\\u" in grammar)
    if has_schema or _COMBINES.search(_GRAMMAR_TEXTS.sub(" ", grammar)):
        raise EngineRefusal(
            "a grammar may not combine expressions by & or ~, nor schemas by allOf",
            code=Code.INVALID_INPUT,
        )


def _combined(value: object) -> int:
    """How many schemas are combined with others, in all of a schema."""
    if isinstance(value, list):
        return sum(map(_combined, value))
    if not isinstance(value, dict):
        return 0
    combined = value.get("allOf")
    own = len(combined) if isinstance(combined, list) else 0
    if "$ref" in value and not _BESIDE_REF.issuperset(value):
        own += 1  # What is beside a reference is combined with what it refers to.
    return own + sum(map(_combined, value.values()))


def _read_schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise EngineRefusal("the JSON schema is not a JSON object", code=Code.INVALID_INPUT)
    if _combined(schema) > _COMBINED_MAX:
        raise EngineRefusal(
            "the JSON schema combines more than {limit} schemas by allOf or beside $ref",
            code=Code.INVALID_INPUT,
            limit=_COMBINED_MAX,
        )
    return schema


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """With no other arguments than those that it names, unless it says so: a small model would go
    on with inventions of its own."""
    schema = _read_schema(tool.parameters) if tool.parameters else {}
    is_closed = not schema or "properties" in schema
    closed = {"additionalProperties": False} if is_closed else {}
    return _with_options({"type": "object", **closed, **schema})


def _with_options(schema: dict[str, Any]) -> dict[str, Any]:
    """A client's own options of the library do not count: one of them ignores what it cannot do."""
    return {**schema, "x-guidance": _JSON_OPTIONS}


def _refuse(error: str) -> None:
    """In words of ours: the library's quote the input."""
    if "Unimplemented keys" in error:
        raise EngineRefusal(
            "the JSON schema uses a keyword that cannot be enforced: leave it out",
            code=Code.INVALID_INPUT,
        )
    if re.search(
        r"\b(limit|fuel|Unable to determine|too (many|large|big|complex|deep|long))\b", error
    ):
        raise EngineRefusal(
            "the format is too large or too complex to be enforced: simplify it",
            code=Code.INVALID_INPUT,
        )
    raise EngineRefusal(
        "the format or a tool's schema is wrong, or refers to what is not in it",
        code=Code.INVALID_INPUT,
    )

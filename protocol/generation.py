"""What a generation is asked for, and what it may answer beside its text.

The texts that one input holds are data: a node encodes them apart from its chat template, so that a
message cannot spell a control token. Sampling is specified in docs/protocol.md.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from protocol.codec import added
from protocol.fields import check
from protocol.limits import (
    CHAT_MESSAGES_MAX,
    FORMAT_CHARS_MAX,
    LOGIT_BIASES_MAX,
    NAME_CHARS_MAX,
    STOP_CHARS_MAX,
    STOP_STRINGS_MAX,
    STOP_TOKENS_MAX,
    TOKENS_MAX,
    TOOL_CALLS_MAX,
    TOOLS_MAX,
    TOP_LOGPROBS_MAX,
)

SEED_MAX = 2**63 - 1
# No vocabulary comes near it, and it fits the four bytes that the output digest takes.
TOKEN_ID_MAX = 2**31 - 1

# No two sums of logit and noise are so far apart.
GAP_MAX = 1_000_000.0


def check_token_ids(token_ids: tuple[int, ...]) -> None:
    # Not one by one in Python: a million of them may come for free.
    is_good = not token_ids or (min(token_ids) >= 0 and max(token_ids) <= TOKEN_ID_MAX)
    check(is_good, "a token id is out of range")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made: `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str

    def __post_init__(self) -> None:
        check(len(self.id) <= NAME_CHARS_MAX, "a tool call's id is too long")
        check(0 < len(self.name) <= NAME_CHARS_MAX, "a tool's name is empty or too long")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """`tool_calls` and `reasoning` are the assistant's; `tool_call_id` says which call a message of
    role `tool` answers; `name` is the speaker's, where a template shows it."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    def __post_init__(self) -> None:
        check(0 < len(self.role) <= NAME_CHARS_MAX, "a message's role is empty or too long")
        check(len(self.tool_calls or ()) <= TOOL_CALLS_MAX, "a message has too many tool calls")
        for name in (self.tool_call_id, self.name):
            check(name is None or len(name) <= NAME_CHARS_MAX, "a message's name is too long")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema as text, or empty."""

    name: str
    description: str = ""
    parameters: str = ""

    def __post_init__(self) -> None:
        check(0 < len(self.name) <= NAME_CHARS_MAX, "a tool's name is empty or too long")


class ToolChoice(StrEnum):
    """Whether the model must call a tool. `required` with one tool listed names that one."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class FormatKind(StrEnum):
    """How an `OutputFormat` states what the answer must look like."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    # llguidance's variant of Lark.
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the whole answer must match: `text` is the schema, the expression or the grammar."""

    kind: FormatKind
    text: str = ""

    def __post_init__(self) -> None:
        check(len(self.text) <= FORMAT_CHARS_MAX, "the output format is too long")
        is_bare = self.kind is FormatKind.JSON_OBJECT
        check(is_bare != bool(self.text), "the output format needs a text, or may have none")


@dataclass(frozen=True, slots=True)
class TokenBias:
    """What is added to one token's logit."""

    token_id: int
    bias: float


@dataclass(frozen=True, slots=True)
class GenerationInput:
    """Exactly one of `messages`, `prompt` and `prompt_tokens`. `prefix_tokens` are output tokens
    that were already delivered: the answer continues after them (they count as input), and what
    looks back at the answer (penalties, `min_tokens`, `format`, stop strings) sees them too.

    `logprobs` asks for each output token's score with that many alternatives, `prompt_logprobs` for
    those of the prompt. `continues_final_message` leaves the last message open, so that the answer
    goes on with it. `template_arguments` is a JSON object for the chat template. With
    `tokenizes_only` the answer is one `TokensOutput` in `data`, and nothing is metered. With
    `includes_stop` the stop string that ends the answer is part of it. With `scores_prefix` the
    prefix is an answer to check: its tokens are scored with those of the prompt, each with its gap.

    A node may keep what it computes of a prompt for jobs that begin alike: for those of the same
    client and the same `cache_salt`, or, with `shares_cache`, for those of all clients that share
    and give the same salt.
    """

    max_tokens: int
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    prompt_tokens: tuple[int, ...] = ()
    prefix_tokens: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[TokenBias, ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    format: OutputFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    parallel_tool_calls: bool = True
    continues_final_message: bool = False
    template_arguments: str = ""
    tokenizes_only: bool = False
    includes_stop: bool = False
    scores_prefix: bool = False
    cache_salt: str = added("")
    shares_cache: bool = added(False)

    def __post_init__(self) -> None:
        given = (bool(self.messages), self.prompt is not None, bool(self.prompt_tokens))
        check(sum(given) == 1, "give one of messages, prompt and prompt_tokens")
        check(len(self.messages) <= CHAT_MESSAGES_MAX, "too many messages")
        check(0 < self.max_tokens <= TOKENS_MAX, "max_tokens is out of range")
        for tokens in (self.prompt_tokens, self.prefix_tokens, self.stop_token_ids):
            check(len(tokens) <= TOKENS_MAX, "too many tokens")
            check_token_ids(tokens)
        check(self.seed is None or 0 <= self.seed <= SEED_MAX, "the seed is out of range")
        check(len(self.cache_salt) <= NAME_CHARS_MAX, "cache_salt is too long")
        self._check_sampling()
        self._check_ends()
        check(len(self.tools) <= TOOLS_MAX, "too many tools")
        check(len(self.template_arguments) <= FORMAT_CHARS_MAX, "template_arguments is too long")

    def _check_sampling(self) -> None:
        check(0.0 <= self.temperature <= 2.0, "temperature lies between 0 and 2")
        check(0.0 < self.top_p <= 1.0, "top_p lies above 0 and up to 1")
        check(0 <= self.top_k <= TOKENS_MAX, "top_k is out of range")
        check(0.0 <= self.min_p <= 1.0, "min_p lies between 0 and 1")
        for penalty in (self.presence_penalty, self.frequency_penalty):
            check(-2.0 <= penalty <= 2.0, "a penalty lies between -2 and 2")
        check(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty lies above 0 and up to 10")
        check(len(self.logit_bias) <= LOGIT_BIASES_MAX, "too many logit biases")
        check_token_ids(tuple(item.token_id for item in self.logit_bias))
        is_finite = all(math.isfinite(item.bias) for item in self.logit_bias)
        check(is_finite and all(abs(b.bias) <= 100 for b in self.logit_bias), "a bias is too large")
        has_scored = bool(self.prefix_tokens) and self.prompt_logprobs is not None
        check(
            has_scored or not self.scores_prefix, "an answer to score, or its logprobs, is missing"
        )
        for count in (self.logprobs, self.prompt_logprobs):
            check(count is None or 0 <= count <= TOP_LOGPROBS_MAX, "logprobs is out of range")

    def _check_ends(self) -> None:
        check(len(self.stop) <= STOP_STRINGS_MAX, "too many stop strings")
        check(
            all(0 < len(text) <= STOP_CHARS_MAX for text in self.stop),
            "a stop string is empty or too long",
        )
        check(len(self.stop_token_ids) <= STOP_TOKENS_MAX, "too many stop tokens")
        check(0 <= self.min_tokens <= TOKENS_MAX, "min_tokens is out of range")


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token: the natural logarithm of its probability before temperature and filters, and how
    many tokens were likelier.

    `gap` is of an answer that was given to be scored: the token's sum of scaled logit and noise
    less the greatest of the others that the request's rules and filters leave, so that the sampler
    takes the token where it is positive. Without sampling it is the difference of the logits. It is
    clipped to ±GAP_MAX, which also stands for a token that is left out, or alone.
    """

    token_id: int
    piece: bytes
    logprob: float
    rank: int | None = None
    top: tuple["Alternative", ...] | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there; the likeliest first."""

    token_id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The `data` of one chunk of a generation that was asked for `logprobs`: one score per token of
    the chunk; or, with `is_prompt`, of the prompt's next tokens, in chunks without a token. The
    prompt's first token has no score: its logprob is 0."""

    tokens: tuple[TokenScore, ...]
    is_prompt: bool = False


@dataclass(frozen=True, slots=True)
class TokensOutput:
    """What a `tokenizes_only` input is to the model: ids, and the bytes that each token spells."""

    token_ids: tuple[int, ...]
    pieces: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check(len(self.token_ids) <= TOKENS_MAX, "too many tokens")
        check_token_ids(self.token_ids)
        check(len(self.token_ids) == len(self.pieces), "not one piece per token")

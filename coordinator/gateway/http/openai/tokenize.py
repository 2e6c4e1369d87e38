"""What a text is to a model, in tokens: POST /v1/tokenize and /v1/detokenize, in vLLM's shapes. The
node's own tokenizer answers, and nothing is charged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from coordinator.gateway.errors import error_of, invalid
from coordinator.gateway.http.dialect import ChoiceAnswer, only_answer
from coordinator.gateway.http.openai.chat import read_template_arguments
from coordinator.gateway.http.openai.messages import is_prefill, read_messages
from coordinator.gateway.http.openai.names import NEUTRAL, ROUTING_WORDS, check_names
from coordinator.gateway.http.openai.sampling import read_token_id
from coordinator.gateway.http.openai.tools import TOOL_WORDS, read_tools
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import GenerationOrder, check_text_size, text_bytes
from protocol.codec import decode
from protocol.errors import RemoteProtocolError
from protocol.generation import GenerationInput, TokensOutput
from protocol.limits import TOKENS_MAX

TOKENIZE_WORDS = {
    **ROUTING_WORDS,
    "prompt": "A text, as completions take it.",
    "messages": "A conversation, as chats take it, instead of a prompt.",
    "tools": TOOL_WORDS["tools"],
    "add_generation_prompt": "False belongs to `continue_final_message`.",
    "continue_final_message": "The last message is not finished.",
    "chat_template_kwargs": "An object for the model's chat template.",
    "return_token_strs": "Whether to return each token's text, too.",
}
DETOKENIZE_WORDS = {**ROUTING_WORDS, "tokens": "Token ids."}
_NEUTRAL = NEUTRAL | {"add_special_tokens": ()}

_Write = Callable[[TokensOutput, StartedAnswer], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TokensCall:
    """A `JobCall` for the tokens of a text, or the text of tokens."""

    order: GenerationOrder
    write: _Write
    is_streamed: bool = False

    @property
    def orders(self) -> tuple[GenerationOrder]:
        return (self.order,)

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        finished = only_answer(choices)
        try:
            output = decode(TokensOutput, finished.data)
        except RemoteProtocolError as error:
            raise error_of(error.code, str(error)) from error
        return to_json(self.write(output, finished.opened))

    def writer(self, opened: StartedAnswer, created_s: int) -> NoReturn:
        raise AssertionError("tokens are not streamed")


def read_tokenize(fields: Fields) -> TokensCall:
    """The tokens of a text or of a conversation. Nothing is charged. Raises ApiError (400, 413)."""
    has_messages = fields.raw("messages") is not None
    # As completions and chats do it.
    neutral = _NEUTRAL | {"add_special_tokens": (not has_messages,)}
    check_names(fields, TOKENIZE_WORDS, neutral=neutral)
    routing = read_routing(fields)
    if has_messages:
        job_input = GenerationInput(
            max_tokens=1,
            messages=read_messages(fields),
            continues_final_message=is_prefill(fields),
            template_arguments=read_template_arguments(fields),
            tokenizes_only=True,
            **read_tools(fields).to_arguments(),
        )
    else:
        text = check_text(fields.required("prompt"), "prompt")
        if not text:
            raise invalid("prompt is empty: it has no tokens", "prompt")
        job_input = GenerationInput(max_tokens=1, prompt=text, tokenizes_only=True)
    size = text_bytes(job_input)
    order = GenerationOrder(routing, job_input, size)
    check_text_size(size, order.input_param)
    has_texts = bool(fields.flag("return_token_strs"))
    return TokensCall(order, lambda output, opened: _write_tokens(output, opened, has_texts))


def _write_tokens(output: TokensOutput, opened: StartedAnswer, has_texts: bool) -> dict[str, Any]:
    context = opened.model.context_tokens if opened.model is not None else 0
    texts = [piece.decode(errors="replace") for piece in output.pieces] if has_texts else None
    return {
        "count": len(output.token_ids),
        "max_model_len": context or None,
        "tokens": output.token_ids,
        "token_strs": texts,
    }


def read_detokenize(fields: Fields) -> TokensCall:
    """The text that token ids spell. Nothing is charged. Raises ApiError (400)."""
    check_names(fields, DETOKENIZE_WORDS)
    routing = read_routing(fields)
    tokens = read_list(
        fields.required("tokens"), "tokens", items_max=TOKENS_MAX, read=read_token_id
    )
    if not tokens:
        raise invalid("tokens is empty: it spells nothing", "tokens")
    job_input = GenerationInput(max_tokens=1, prompt_tokens=tokens, tokenizes_only=True)
    order = GenerationOrder(routing, job_input, text_bytes(job_input))
    return TokensCall(order, _write_text)


def _write_text(output: TokensOutput, _: StartedAnswer) -> dict[str, Any]:
    return {"prompt": b"".join(output.pieces).decode(errors="replace")}

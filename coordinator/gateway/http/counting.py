"""How many tokens a conversation is to its model: an answer that costs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from coordinator.gateway.errors import error_of
from coordinator.gateway.http.dialect import ChoiceAnswer, only_answer
from coordinator.gateway.http.event_text import event_json
from coordinator.gateway.market_side.running import StartedAnswer
from coordinator.gateway.orders import GenerationOrder
from protocol.codec import decode
from protocol.errors import RemoteProtocolError
from protocol.generation import TokensOutput


@dataclass(frozen=True, slots=True)
class CountCall:
    """A `JobCall` that asks a node's tokenizer, for nothing. `beside` stands beside the count."""

    order: GenerationOrder
    beside: Mapping[str, str] = field(default_factory=dict)
    is_streamed: bool = False

    @property
    def orders(self) -> tuple[GenerationOrder]:
        return (self.order,)

    def answer(self, choices: Sequence[ChoiceAnswer], created_s: int) -> bytes:
        try:
            output = decode(TokensOutput, only_answer(choices).data)
        except RemoteProtocolError as error:
            raise error_of(error.code, str(error)) from error
        return event_json({**self.beside, "input_tokens": len(output.token_ids)}).encode()

    def writer(self, opened: StartedAnswer, created_s: int) -> NoReturn:
        raise AssertionError("a count is not streamed")

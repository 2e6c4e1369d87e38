"""A whole answer in an API whose streams add up to one object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from coordinator.gateway.errors import error_of
from coordinator.gateway.http.dialect import ChoiceAnswer, StreamWriter, only_answer
from coordinator.gateway.http.event_text import event_json
from coordinator.gateway.market_side.running import StartedAnswer
from protocol.errors import RemoteProtocolError


class CollectingWriter(StreamWriter, Protocol):
    """A `StreamWriter` that keeps what its stream comes to."""

    @property
    def whole(self) -> Mapping[str, Any]: ...


def write_whole(
    make_writer: Callable[[StartedAnswer], CollectingWriter], choices: Sequence[ChoiceAnswer]
) -> bytes:
    """The body of the answer of a call that has one order. Raises ApiError if the node's output is
    broken."""
    answer = only_answer(choices)
    writer = make_writer(answer.opened)
    try:
        writer.add(0, answer.chunks)
        writer.end(0, answer.outcome)
    except RemoteProtocolError as error:
        raise error_of(error.code, str(error), is_billed=True) from error
    return event_json(writer.whole).encode()

"""Having a coordinator dial us: the dialogue, for a node's control line and for the doctor."""

from typing import Protocol, TypeVar

import structlog

from capanode.reach.reachability import Reachability
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.reach import PADDING_BYTES, DialBackAsk, DialBackReply
from protocol.services import Method

log = structlog.get_logger(__name__)

R = TypeVar("R")


class CoordinatorCall(Protocol):
    """Asks one coordinator. Raises RemoteProtocolError, NetError."""

    async def __call__(self, method: Method, ask: object, reply: type[R]) -> R: ...


async def ask_dial_back(call: CoordinatorCall, reach: Reachability, coordinator: PeerId) -> None:
    """Have the coordinator dial what may work; then, once more and paid for with padding, what its
    answer brings up. `reach` notes what came of it. Raises NetError."""
    addresses = reach.candidates()
    for is_more in (False, True):
        if is_more:
            addresses = reach.open_questions(coordinator)
        if is_more and not addresses:
            return
        padding = bytes(PADDING_BYTES * len(addresses)) if is_more else b""
        try:
            reply = await call(Method.DIAL_BACK, DialBackAsk(addresses, padding), DialBackReply)
        except RemoteProtocolError as error:
            if error.code is Code.NOT_FOUND:
                reach.note_unable(coordinator)
            else:
                log.info("not_dialled_back", coordinator=coordinator, error=str(error))
            return
        reach.note(coordinator, reply, is_more=is_more)

"""Waiting for a model that should be offered soon: after a restart, nodes need seconds to attach
again, and "I do not know yet" must not be told as "no"."""

import trio

from coordinator.gateway.errors import ApiError, Problem, ProblemKind
from coordinator.gateway.market_side.market import GatewayMarket, ModelInfo

# Nodes attach one by one; a user does not notice a tenth of a second.
_POLL_S = 0.1
_RETRY_AFTER_MS = 1_000


async def wait_model(market: GatewayMarket, name: str, *, within_s: float) -> ModelInfo | None:
    """What is offered under a name; None if it is unknown.

    Raises ApiError (503) if it is expected, and no node has offered it in time.
    """
    deadline = trio.current_time() + within_s
    while (found := market.model(name)) is None:
        if not market.is_expected(name):
            return None
        if trio.current_time() >= deadline:
            raise _no_node_yet(name)
        await trio.sleep(_POLL_S)
    return found


def _no_node_yet(name: str) -> ApiError:
    return ApiError(
        Problem(
            503,
            f"no node that offers {name[:128]!r} is connected at the moment: try again shortly",
            kind=ProblemKind.UNAVAILABLE,
            code="no_node_yet",
            param="model",
            retry_after_ms=_RETRY_AFTER_MS,
            should_retry=True,
        )
    )

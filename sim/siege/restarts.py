"""F2: attacks on the bound of what a node that does not answer may be given."""

from contextlib import suppress
from dataclasses import replace

import trio

from protocol.errors import RemoteProtocolError
from protocol.net.errors import NetError
from protocol.offers import LoadReport
from protocol.pricing import PriceSheet
from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import GatewayUser
from sim.siege.ground import Ground
from sim.siege.staged_job import answer, stall
from sim.siege.staged_node import StagedNode, staged

# At half the price of the honest ones, so that it is chosen wherever it can be.
_CHEAP = PriceSheet(input_nano_per_mtok=500_000_000, output_nano_per_mtok=2_000_000_000)
_MODEL = "f2"
_ASKS, _AT_ONCE = 60, 6
_LASTS_WITHIN_S = 20.0
_AGAIN_EVERY_S = 0.3
_AHEAD_MS = 3_600_000
# What one new machine may be given before the first failure is seen, and one probe.
_JOBS_MAX = 5


class _Restarting(StagedNode):
    """It says that it has just begun whenever it reports."""

    def _load(self) -> LoadReport:
        report = super()._load()
        return replace(report, incarnation_ms=report.incarnation_ms + _AHEAD_MS)


async def false_restarts(ground: Ground) -> AttackResult:
    """A node that answers nothing says again and again that it restarted, so that its seats are
    free."""
    user = await ground.open_gateway_account()
    honest = [StagedNode(_MODEL, answer) for _ in range(3)]
    async with staged(ground.endpoint, *honest):
        before = await _asked_beside(ground, user, StagedNode(_MODEL, stall, price=_CHEAP))
        under = await _asked_beside(ground, user, _Restarting(_MODEL, stall, price=_CHEAP))
    return AttackResult(
        held=under[0] == _ASKS and under[1] <= _JOBS_MAX,
        honest_before=f"{before[0]} of {_ASKS} answered beside a silent node, which gets "
        f"{before[1]} jobs",
        honest_under=f"{under[0]} of {_ASKS} answered, it gets {under[1]} jobs",
    )


async def _asked_beside(ground: Ground, user: GatewayUser, node: StagedNode) -> tuple[int, int]:
    """How many requests were answered, and how many jobs the node got."""

    async def attach_forever() -> None:
        while True:
            await trio.sleep(_AGAIN_EVERY_S)
            with suppress(NetError, RemoteProtocolError):
                await node.attach()

    async with staged(ground.endpoint, node), trio.open_nursery() as nursery:
        nursery.start_soon(attach_forever)
        served = await user.ask_honestly(_MODEL, _ASKS, at_once=_AT_ONCE, within_s=_LASTS_WITHIN_S)
        nursery.cancel_scope.cancel()
    return served.answered, node.jobs_opened


ATTACKS = (Attack("false-restarts", "F2", "say again and again to have restarted", false_restarts),)

"""Dialling nodes back where they say that they listen: the one referee of what an offer's addresses
are worth.

A node must not be able to aim our dials at others. So only the host that its own connection comes
from is dialled freely; a neighbour of it at a bounded rate per address block; and any other place
only on the public internet, at that rate, and if the asking cost more bytes than the dial.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import structlog
import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.addresses import CIRCUIT, HOST_KINDS, host_of, split_peer_id
from protocol.net.dial_policy import is_public
from protocol.net.errors import (
    AddressForbidden,
    AddressInvalid,
    NetError,
    NetTimeout,
    PeerMismatch,
)
from protocol.net.shares import block_of
from protocol.net.transport import Transport
from protocol.reach import PADDING_BYTES, DialBackAsk, Dialled, DialResult
from protocol.token_buckets import Rate, TokenBuckets

log = structlog.get_logger(__name__)

# A buyer's dial that takes longer is given up for another node.
DIAL_WITHIN_S = 3.0
# All nodes of a large market come back within seconds when their coordinator restarts.
DIALS_AT_ONCE = 64
# Addresses of one node: all that an offer lists a few times over, then one every two seconds.
OF_A_NODE = Rate(per_s=0.5, burst=32)
# Dials into a block of addresses, elsewhere than where the node itself was seen.
INTO_A_BLOCK = Rate(per_s=0.2, burst=8)
# Of nodes and of blocks; about 20 MB at most.
KEYS_MAX = 100_000
# What was seen a while ago need not be looked at again: a node asks when its network changes, and
# buyers tell where it does not. What failed may work after the next refresh of the offer.
REACHED_FRESH_S = 1_800.0
FAILED_FRESH_S = 50.0


@dataclass(frozen=True, slots=True)
class _Seen:
    outcome: Dialled
    at: float


class DialBack:
    """Dials nodes and remembers what came of it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        self._of_nodes = TokenBuckets(keys_max=KEYS_MAX)
        self._into_blocks = TokenBuckets(keys_max=KEYS_MAX)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._has_reached_any = False

    async def answer(self, node: PeerId, ask: DialBackAsk) -> tuple[DialResult, ...]:
        """Dial what a node asks for. Raises RemoteProtocolError (RATE_LIMITED)."""
        now = trio.current_time()
        wanted = tuple(dict.fromkeys(ask.addresses))
        level = self._of_nodes.take(node, OF_A_NODE, now_s=now, count=len(wanted))
        if level.wait_s:
            raise RemoteProtocolError(
                "this node asks to be dialled too often",
                code=Code.RATE_LIMITED,
                retry_after_ms=max(1, round(1_000 * level.wait_s)),
            )
        paid_for = len(ask.padding) // PADDING_BYTES
        return await self._dial_all(node, wanted, paid_for=paid_for)

    async def look_at(
        self, node: PeerId, addresses: Iterable[str], *, fresh_s: float | None = None
    ) -> None:
        """Dial those that were not dialled within `fresh_s`, of our own accord; if that is None, it
        depends on what was seen."""
        unknown = [
            address
            for address in dict.fromkeys(addresses)
            # Circuits are the relay's to answer for.
            if CIRCUIT not in address and not self._is_fresh(address, fresh_s)
        ]
        await self._dial_all(node, unknown, paid_for=0)

    def is_dialable(self, addresses: Sequence[str]) -> bool:
        """Whether an offer has an address that may work for a buyer. Where we have never reached
        any node at all, we are the ones who cannot dial."""
        if not self._has_reached_any:
            return True
        return any(CIRCUIT in address or self._may_work(address) for address in addresses)

    def was_reached(self, addresses: Sequence[str]) -> bool:
        """Whether the latest dial of one of them arrived."""
        seen = (self._seen.get(address) for address in addresses)
        return any(it is not None and it.outcome is Dialled.REACHED for it in seen)

    def _is_fresh(self, address: str, fresh_s: float | None) -> bool:
        seen = self._seen.get(address)
        if seen is None:
            return False
        was_reached = seen.outcome is Dialled.REACHED
        usual_s = REACHED_FRESH_S if was_reached else FAILED_FRESH_S
        return trio.current_time() - seen.at < (usual_s if fresh_s is None else fresh_s)

    def _may_work(self, address: str) -> bool:
        seen = self._seen.get(address)
        return seen is None or seen.outcome in (Dialled.REACHED, Dialled.UNPROVEN)

    async def _dial_all(
        self, node: PeerId, addresses: Sequence[str], *, paid_for: int
    ) -> tuple[DialResult, ...]:
        observed = self._transport.observed_host(node)
        results: dict[str, DialResult] = {}

        async def dial(address: str) -> None:
            async with self._limiter:
                results[address] = await self._dial(address)

        async with trio.open_nursery() as nursery:
            for address in addresses:
                refusal = _judge(node, address, observed, paid_for)
                if refusal is None and not _is_at(address, observed):
                    paid_for -= not _is_beside(address, observed)
                    refusal = self._take_block(address)
                if refusal is None:
                    nursery.start_soon(dial, address)
                else:
                    results[address] = DialResult(address, refusal)
        for result in results.values():
            self._remember(result)
        if results:
            outcomes = {address: result.outcome.value for address, result in results.items()}
            log.info("dialled_back", node=node, observed=observed, outcomes=outcomes)
        return tuple(results[address] for address in addresses)

    def _take_block(self, address: str) -> Dialled | None:
        now = trio.current_time()
        level = self._into_blocks.take(block_of(host_of(address)), INTO_A_BLOCK, now_s=now)
        return Dialled.UNPROVEN if level.wait_s else None

    async def _dial(self, address: str) -> DialResult:
        started_at = trio.current_time()
        outcome = Dialled.REACHED
        try:
            await self._transport.probe(address, timeout_s=DIAL_WITHIN_S)
        except (AddressForbidden, AddressInvalid):
            outcome = Dialled.FORBIDDEN
        except PeerMismatch:
            outcome = Dialled.OTHER_PEER
        except NetTimeout:
            outcome = Dialled.TIMED_OUT
        except NetError:
            outcome = Dialled.REFUSED
        return DialResult(address, outcome, round(1_000 * (trio.current_time() - started_at)))

    def _remember(self, result: DialResult) -> None:
        if result.outcome is Dialled.UNPROVEN and result.address in self._seen:
            return  # What was seen says more than what was not looked at.
        self._has_reached_any |= result.outcome is Dialled.REACHED
        self._seen[result.address] = _Seen(result.outcome, trio.current_time())
        self._seen.move_to_end(result.address)
        if len(self._seen) > KEYS_MAX:
            self._seen.popitem(last=False)


def _judge(node: PeerId, address: str, observed: str, paid_for: int) -> Dialled | None:
    """Why an address of a node is not dialled for it; None if it may be."""
    try:
        _, named = split_peer_id(address)
    except AddressInvalid:
        return Dialled.FORBIDDEN
    if named != node or CIRCUIT in address:
        return Dialled.FORBIDDEN
    if _is_at(address, observed) or _is_beside(address, observed):
        return None
    if not _may_be_public(address):
        return Dialled.FORBIDDEN
    return None if paid_for > 0 else Dialled.UNPROVEN


def _is_at(address: str, observed: str) -> bool:
    return bool(observed) and host_of(address) == observed


def _is_beside(address: str, observed: str) -> bool:
    return bool(observed) and block_of(host_of(address)) == block_of(observed)


def _may_be_public(address: str) -> bool:
    """Names are resolved, and judged, when they are dialled."""
    kind = address.split("/")[1]
    if kind not in ("ip4", "ip6"):
        return kind in HOST_KINDS
    try:
        return is_public(ip_address(host_of(address)))
    except ValueError:
        return False

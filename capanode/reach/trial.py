"""`capanode doctor --online`: have the markets dial this machine, also before its first start.

A node that runs has been dialled already, and is asked. Otherwise this listens for some seconds
where the node would, under its key, without attaching.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import trio

from capanode.config import NodeConfig
from capanode.errors import NotRunningError
from capanode.hardware import MachineCheck
from capanode.jobs import ROLE
from capanode.reach.advice import virtual_network
from capanode.reach.asking import R, ask_dial_back
from capanode.reach.reachability import Reachability
from capanode.settings import CoordinatorAddress
from capanode.status_socket import ask_status
from protocol.keys import SigningKey
from protocol.net.addresses import split_peer_id
from protocol.net.errors import NetError
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.net.serve import describe
from protocol.programs.keyfile import KeyFileError, load_key_file
from protocol.programs.output import short
from protocol.programs.runtime import system_runtime
from protocol.services import CONTROL_PROTOCOL, Method

_WITHIN_S = 15.0

_OUTCOMES = {
    "reached": "reached in {took_ms} ms",
    "refused": "nothing of ours answers there",
    "timed_out": "no answer: a router or a firewall drops it",
    "other_peer": "another node answers there",
    "forbidden": "not dialled: it is no address of the internet",
    "unproven": "not dialled: it is not where this machine was seen",
}

_STATES = {
    "unknown": "no market has said whether it can dial this node",
    "direct": "buyers can dial this node",
    "relayed": "buyers reach this node through a relay only, which costs a detour",
    "unreachable": "buyers that have to dial cannot reach this node",
}


def reach_findings(config: NodeConfig) -> tuple[MachineCheck, ...]:
    """What the markets dialled, what they saw, and what to do. Blocks for some seconds."""
    try:
        return tuple(findings_of(ask_status(config.status_socket)["reach"]))
    except NotRunningError:
        pass
    try:
        key = load_key_file(config.key_path)
    except KeyFileError:
        return ()  # Another finding says so.
    return trio.run(_try, config, key)


def findings_of(reach: Mapping[str, Any]) -> Iterator[MachineCheck]:
    """The facts of `ReachStatus`, as JSON has them."""
    for tried in reach["tried"]:
        outcome = tried["outcome"]
        words = _OUTCOMES.get(outcome, outcome).format(**tried)
        place = split_peer_id(tried["address"])[0]
        detail = f"{short(tried['coordinator'])} dialled {place}: {words}"
        yield MachineCheck("dialled", outcome == "reached", detail)
    for host in reach["observed_hosts"]:
        yield MachineCheck("seen at", True, host)
    for relay in reach["relays"]:
        yield MachineCheck("relay", True, relay.partition("/p2p-circuit")[0])
    for failure in reach["relay_failures"]:
        yield MachineCheck("relay", False, failure)
    if reach["port_mapping"]:
        yield MachineCheck("router", True, reach["port_mapping"])
    if reach["failed_buyers"]:
        detail = f"{reach['failed_buyers']} buyers could lately not dial this node"
        yield MachineCheck("buyers", False, detail)
    state = reach["state"]
    yield MachineCheck(
        "reachable", state in ("direct", "relayed"), _STATES[state], "; ".join(reach["advice"])
    )


async def _try(config: NodeConfig, key: SigningKey) -> tuple[MachineCheck, ...]:
    # libp2p alone takes 45 MB: no other command loads it.
    from protocol.net.libp2p import Libp2pTransport  # noqa: PLC0415

    transport = Libp2pTransport(
        key, config.listen, announce=config.announce, policy=config.dial_policy
    )
    pool = StreamPool(transport, CONTROL_PROTOCOL, role=ROLE, rng=system_runtime().child_rng())
    reach = Reachability(
        transport,
        by_hand=bool(config.announce),
        virtual=virtual_network(),
        on_change=lambda: None,
    )
    failures: list[MachineCheck] = []
    found: tuple[MachineCheck, ...] = ()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            await nursery.start(pool.run)
            for coordinator in config.coordinators:
                failure = await _ask(RpcClient(pool), coordinator, reach)
                failures += [] if failure is None else [failure]
            found = (*failures, *findings_of(asdict(reach.status())))
            nursery.cancel_scope.cancel()
    except* NetError as group:
        found = (MachineCheck("reachable", False, describe(group)),)
    return found


async def _ask(
    rpc: RpcClient, coordinator: CoordinatorAddress, reach: Reachability
) -> MachineCheck | None:
    """None if the market has answered."""

    async def call(method: Method, ask: object, reply: type[R]) -> R:
        addresses = (coordinator.address,)
        return await rpc.call(
            coordinator.peer, method, ask, reply, timeout_s=_WITHIN_S, addresses=addresses
        )

    try:
        await ask_dial_back(call, reach, coordinator.peer)
    except NetError as error:
        return MachineCheck("market", False, f"{coordinator.address} does not answer: {error}")
    return None

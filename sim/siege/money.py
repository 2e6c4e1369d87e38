"""A1, A2, A4: attacks on what is paid, held and remembered of a lease."""

import trio

from protocol.endings import Finish, ReceiptState
from protocol.envelope import Signed
from protocol.errors import RemoteProtocolError
from protocol.limits import WINDOW_TOKENS_MIN
from protocol.messages import Receipt
from protocol.payload import Chunk
from protocol.pricing import Units, cost_nano
from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import GatewayUser
from sim.siege.ground import Ground
from sim.siege.peer import open_peer
from sim.siege.staged_job import ANSWER_TOKENS, StagedJob, answer
from sim.siege.staged_node import PRICE, StagedNode, staged

_TOKENS_ASKED = 1_000
_LEASES_WANTED = 60
_HONEST_ASKS = 6


async def _paid_nano(ground: Ground, buyer: GatewayUser, model: str) -> tuple[int, int]:
    """What one request for a long answer cost its buyer, and its status."""
    owned_nano = ground.owned_nano(buyer.peer_id)
    reply = await buyer.complete(model, max_tokens=_TOKENS_ASKED, within_s=30.0)
    await ground.wait_no_holds(buyer.peer_id)
    return owned_nano - ground.owned_nano(buyer.peer_id), reply.status


async def bill_and_stall(ground: Ground) -> AttackResult:
    """The thief hands a receipt for the whole ceiling in, then delivers nothing."""
    billed_nano = 0

    async def steal(job: StagedJob) -> None:
        nonlocal billed_nano
        receipt = job.sign(job.lease.message.units_max, Finish.STOP)
        billed_nano = receipt.message.amount_nano
        await thief.hand_in(receipt)
        job.accept()
        await trio.sleep(60)

    honest, thief = StagedNode("a1-honest", answer), StagedNode("a1-thief", steal)
    buyer = await ground.open_gateway_account()
    async with staged(ground.endpoint, honest, thief):
        before_nano, _ = await _paid_nano(ground, buyer, "a1-honest")
        under_nano, status = await _paid_nano(ground, buyer, "a1-thief")
        is_closed = await ground.wait_no_holds(buyer.peer_id)
    # A client that gives a silent node up pays for the input, up to a window.
    most_nano = cost_nano(PRICE, Units(WINDOW_TOKENS_MIN))
    return AttackResult(
        held=under_nano <= most_nano < before_nano < billed_nano and is_closed,
        honest_before=f"paid {before_nano:,} nano for an answer",
        honest_under=f"paid {under_nano:,} nano of {billed_nano:,} billed, for status {status}"
        + ("" if is_closed else "; the rest is still held"),
    )


async def inflated_early_receipt(ground: Ground) -> AttackResult:
    """The node hands an inflated receipt in first, and then gives the client an honest one."""
    billed_nano = 0

    async def inflate(job: StagedJob) -> None:
        nonlocal billed_nano
        receipt = job.sign(job.lease.message.units_max, Finish.STOP)
        billed_nano = receipt.message.amount_nano
        await thief.hand_in(receipt)
        await answer(job)

    honest, thief = StagedNode("a1b-honest", answer), StagedNode("a1b-thief", inflate)
    key = await ground.open_key_account()

    async def buy(model: str) -> int:
        owned_nano = ground.owned_nano(key.peer_id)
        await peer.buy(model)
        await ground.wait_no_holds(key.peer_id)
        return owned_nano - ground.owned_nano(key.peer_id)

    async with staged(ground.endpoint, honest, thief), open_peer(ground.endpoint, key) as peer:
        before_nano = await buy("a1b-honest")
        under_nano = await buy("a1b-thief")
    return AttackResult(
        held=0 < before_nano == under_nano < billed_nano,
        honest_before=f"paid {before_nano:,} nano for 8 tokens",
        honest_under=f"paid {under_nano:,} nano for 8 tokens, {billed_nano:,} were billed early",
    )


async def unopened_leases(ground: Ground) -> AttackResult:
    """One account takes leases for all seats of the market and opens none."""
    query = "SELECT count(*) FROM leases WHERE client = ?"
    nodes = [StagedNode("a2", answer) for _ in range(5)]
    buyer = await ground.open_gateway_account()
    attacker = await ground.open_key_account()
    async with staged(ground.endpoint, *nodes), open_peer(ground.endpoint, attacker) as peer:
        before = await buyer.ask_honestly("a2", _HONEST_ASKS, at_once=3)

        async def take() -> None:
            with trio.move_on_after(3.0):
                await peer.try_lease("a2", deadline_s=600)

        async with trio.open_nursery() as nursery:
            for _ in range(_LEASES_WANTED):
                nursery.start_soon(take)
        taken = ground.rows(query, attacker.peer_id)[0][0]
        under = await buyer.ask_honestly("a2", _HONEST_ASKS, at_once=3)
    return AttackResult(
        held=before.is_whole and under.is_whole,
        honest_before=str(before),
        honest_under=f"{under}, beside {taken} unopened leases of {_LEASES_WANTED} asked for",
    )


async def squat_after_restart(ground: Ground) -> AttackResult:
    """After an outage, others ask for leases with the job ids of answers not yet paid.

    Three answers are there when the coordinator is killed: one is left alone, a stranger squats on
    the second, and the client itself asks for the third again.
    """
    handed: list[bytes] = []

    async def answer_and_keep(job: StagedJob) -> None:
        job.accept()
        await job.say(Chunk(tuple(range(ANSWER_TOKENS)), "word"))
        receipt = job.sign_said()
        receipts.append(receipt)
        handed.append(await job.end(receipt))

    receipts: list[Signed[Receipt]] = []
    node = StagedNode("a4", answer_and_keep)
    client = await ground.open_key_account()
    async with staged(ground.endpoint, node):
        async with open_peer(ground.endpoint, client) as peer:
            requests = [await peer.run_unsettled("a4") for _ in range(3)]
        await ground.restart_coordinator()
        async with open_peer(ground.endpoint) as stranger:
            await node.attach()
            await stranger.try_lease("a4", job_id=requests[1].message.job_id)
        async with open_peer(ground.endpoint, client) as peer:
            await peer.ask_again(requests[2])
        paid = [await _paid_for(node, *pair) for pair in zip(receipts, handed, strict=True)]
    is_green = await ground.is_audit_green()
    return AttackResult(
        held=0 < paid[0] == paid[1] == paid[2] and is_green,
        honest_before=f"the node is paid {paid[0]:,} nano for an answer from before the outage",
        honest_under=f"{paid[1]:,} nano beside a stranger, {paid[2]:,} beside its client; "
        f"audit {'green' if is_green else 'RED'}",
    )


async def _paid_for(node: StagedNode, receipt: Signed[Receipt], acceptance: bytes) -> int:
    try:
        reply = await node.hand_in(receipt, acceptance)
    except RemoteProtocolError:
        return 0
    return reply.amount_nano if reply.state == ReceiptState.SETTLED else 0


ATTACKS = (
    Attack("stall-theft", "A1", "bill the ceiling, then say nothing", bill_and_stall),
    Attack("early-receipt", "A1", "hand an inflated receipt in first", inflated_early_receipt),
    Attack("unopened-leases", "A2", "take every seat, open none", unopened_leases),
    Attack("squat-after-restart", "A4", "lease with others' job ids", squat_after_restart),
)

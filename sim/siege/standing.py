"""A3, A6: attacks on what the coordinator thinks of nodes."""

from contextlib import suppress

import trio

from protocol.client_session import EMPTY_TOKENS_MAX
from protocol.errors import Code
from protocol.ids import PeerId
from protocol.net.errors import NetError
from protocol.payload import Chunk
from protocol.pricing import Units, cost_nano
from protocol.services import NodesAsk
from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import GatewayUser, Service
from sim.siege.ground import Ground
from sim.siege.peer import Peer, Wish, open_peer
from sim.siege.staged_job import INPUT_TOKENS, StagedJob, answer, vanish
from sim.siege.staged_node import PRICE, StagedNode, staged

# So many paying accounts make a record of a node's own.
_WITNESSES = 4
_FAILURES_TO_OPEN = 3
# The first time, a breaker stays open for two seconds, more or less a quarter.
_HALF_OPEN_AFTER_S = 2.6
_UNFUNDED_ASKS = 60
_WASHES = 30
_FRAMES = 6
_TEXTLESS_TOKENS = 1_000
_TEXTLESS_ANSWER = 12
_PIECE = 10
_NEWCOMERS_RATE = 0.9


async def probe_theft(ground: Ground) -> AttackResult:
    """A stranger without money asks for the one probe of each node that comes back."""
    users = [await ground.open_gateway_account() for _ in range(_WITNESSES)]
    before = await _come_back(ground, users, "a3-alone", None)
    async with open_peer(ground.endpoint) as stranger:
        under = await _come_back(ground, users, "a3-probed", stranger)
    return AttackResult(
        held=before.is_whole and under.is_whole,
        honest_before=f"after an outage: {before}",
        honest_under=f"{under}",
    )


async def _come_back(
    ground: Ground, users: list[GatewayUser], model: str, stranger: Peer | None
) -> Service:
    """What honest users meet with at a node that was out for a moment."""
    node = StagedNode(model, answer)

    async def ask_forever() -> None:
        while stranger is not None:
            await stranger.try_lease(Wish(model, only=(node.peer_id,)))
            await trio.sleep(0.02)

    async with staged(ground.endpoint, node):
        for user in users:
            await user.complete(model)
        node.play = vanish
        for _ in range(_FAILURES_TO_OPEN):
            await users[0].complete(model)
        node.play = answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_forever)
            await trio.sleep(_HALF_OPEN_AFTER_S)
            service = await users[0].ask_honestly(model, 4, within_s=3.0)
            nursery.cancel_scope.cancel()
    return service


async def unfunded_rows(ground: Ground) -> AttackResult:
    """Strangers without an account ask for leases: does anything of them stay in the books?"""
    user = await ground.open_gateway_account()
    async with staged(ground.endpoint, StagedNode("a3-rows", answer)):
        await user.complete("a3-rows")
        await ground.books.wait_no_holds(user.peer_id)
        before = ground.books.row_count()
        codes: set[Code | None] = set()
        async with open_peer(ground.endpoint) as stranger:
            for _ in range(_UNFUNDED_ASKS):
                codes.add(await stranger.try_lease(Wish("a3-rows")))
        under = ground.books.row_count()
    return AttackResult(
        held=before == under and None not in codes,
        honest_before=f"{before} rows in the books",
        honest_under=f"{under} rows after {_UNFUNDED_ASKS} unfunded asks",
    )


async def washing(ground: Ground) -> AttackResult:
    """A node that cuts its users' answers buys from itself, free of charge, for its record."""
    users = [await ground.open_gateway_account() for _ in range(2)]
    friend = await ground.books.open_own(1_000_000)

    async def cut_others(job: StagedJob) -> None:
        await (answer if job.lease.message.client == friend.peer_id else vanish)(job)

    node = StagedNode("a6-cuts", cut_others, free_model="a6-free")
    async with staged(ground.endpoint, node), open_peer(ground.endpoint, friend) as peer:
        for user in users:
            await user.complete("a6-cuts")
        before = await _success_rate(peer, "a6-cuts", node.peer_id)
        washed = [await peer.tries_to_buy("a6-free") for _ in range(_WASHES)].count(True)
        under = await _success_rate(peer, "a6-cuts", node.peer_id)
    return AttackResult(
        held=before < 0.85 and under <= before + 0.02 and washed > _WASHES // 2,
        honest_before=f"success rate of a node that cut 2 answers: {before:.2f}",
        honest_under=f"{under:.2f} after {washed} free jobs of its own client",
    )


async def framing(ground: Ground) -> AttackResult:
    """One client makes an honest node refuse it, again and again."""
    user = await ground.open_gateway_account()
    framer = await ground.books.open_own()

    async def refuse_framer(job: StagedJob) -> None:
        if job.lease.message.client == framer.peer_id:
            await job.refuse(Code.BUSY)
        else:
            await answer(job)

    async with (
        staged(ground.endpoint, StagedNode("a6-framed", refuse_framer)),
        open_peer(ground.endpoint, framer) as peer,
    ):
        before = await user.ask_honestly("a6-framed", 4)
        async with trio.open_nursery() as nursery:

            async def frame_forever() -> None:
                while True:
                    await peer.tries_to_buy("a6-framed")
                    await trio.sleep(0.1)

            for _ in range(_FRAMES):
                await peer.tries_to_buy("a6-framed")
            nursery.start_soon(frame_forever)
            under = await user.ask_honestly("a6-framed", 4)
            nursery.cancel_scope.cancel()
    return AttackResult(before.is_whole and under.is_whole, str(before), str(under))


async def textless_tokens(ground: Ground) -> AttackResult:
    """A node sends token ids without any text, and bills them."""

    async def send_nothing(job: StagedJob) -> None:
        job.accept()
        with suppress(NetError):
            for first in range(0, _TEXTLESS_TOKENS, _PIECE):
                await job.say_at_once(Chunk(tuple(range(first, first + _PIECE)), ""))
        receipt = job.sign_said()
        await job.end(receipt)
        await thief.hand_in(receipt)

    async def answer_nothing(job: StagedJob) -> None:
        job.accept()
        for number in range(_TEXTLESS_ANSWER):
            await job.say(Chunk((number,), ""))
        receipt = job.sign_said()
        await job.end(receipt)
        await brief.hand_in(receipt)

    honest, thief = StagedNode("a6-text", answer), StagedNode("a6-textless", send_nothing)
    brief = StagedNode("a6-brief", answer_nothing)
    user = await ground.open_gateway_account()

    async def paid(model: str) -> tuple[int, int]:
        owned_nano = ground.books.owned_nano(user.peer_id)
        reply = await user.complete(model, max_tokens=_TEXTLESS_TOKENS, within_s=30.0)
        await ground.books.wait_no_holds(user.peer_id)
        return owned_nano - ground.books.owned_nano(user.peer_id), reply.status

    async with staged(ground.endpoint, honest, thief, brief):
        (before, _), (under, status) = await paid("a6-text"), await paid("a6-textless")
        brief_nano, brief_status = await paid("a6-brief")
        async with open_peer(ground.endpoint) as peer:
            rate = await _success_rate(peer, "a6-textless", thief.peer_id)
            brief_rate = await _success_rate(peer, "a6-brief", brief.peer_id)
    # What a client signs for before it is sure that no text follows.
    most = cost_nano(PRICE, Units(INPUT_TOKENS, EMPTY_TOKENS_MAX))
    return AttackResult(
        held=max(under, brief_nano) <= most
        and before > 0
        and 200 not in (status, brief_status)
        and max(rate, brief_rate) < _NEWCOMERS_RATE,
        honest_before=f"paid {before:,} nano for 8 words, success rate {_NEWCOMERS_RATE:.2f}",
        honest_under=f"paid {under:,} nano of {_TEXTLESS_TOKENS:,} tokens without text, "
        f"success rate {rate:.2f}; {brief_nano:,} nano for an answer of {_TEXTLESS_ANSWER}, "
        f"{brief_rate:.2f}",
    )


async def _success_rate(peer: Peer, model: str, node: PeerId) -> float:
    page = await peer.leaser.nodes(NodesAsk(model))
    [rate] = [summary.success_rate for summary in page.nodes if summary.node == node]
    return rate


ATTACKS = (
    Attack("probe-theft", "A3", "take each probe without money", probe_theft),
    Attack("unfunded-rows", "A3", "ask for leases without an account", unfunded_rows),
    Attack("washing", "A6", "buy a record from oneself for nothing", washing),
    Attack("framing", "A6", "make an honest node refuse", framing),
    Attack("textless-tokens", "A6", "bill tokens that show no text", textless_tokens),
)

"""A receipt without its client's acceptance is worth what the client signed while it streamed."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from protocol.endings import Finish
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import sha256_digest
from protocol.messages import Receipt
from protocol.net.channels import Channel
from protocol.node_session import NodeJob, Opened
from protocol.payload import Chunk
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.coordinator.small_market import (
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    PRICE,
    Script,
    ScriptedNode,
    SmallMarket,
    open_small_market,
    read_countersignatures,
)

# After the deadline of `spec`, and before its hold ends.
LONE_RECEIPT_IS_DUE_S = 50


class Liar:
    """Sends `tokens` of the answer, stalls, and has a receipt for everything that was leased."""

    def __init__(self, nodes: list[ScriptedNode], *, tokens: int) -> None:
        self.node = nodes[0]
        self.tokens = tokens
        self.receipt: Signed[Receipt] | None = None
        self.has_signed = trio.Event()
        self.node.serve_job = self.serve  # type: ignore[method-assign]  # a script of its own

    async def serve(self, channel: Channel) -> None:
        job = NodeJob(self.node.key)
        while True:
            frame = await channel.receive()
            if isinstance(job.receive(frame.type, frame.body), Opened):
                break
        channel.send_nowait(*self.node.admit(job))
        for number in range(self.tokens):
            for out in job.output(Chunk((number,), "x")):
                channel.send_nowait(*out)
            await trio.sleep(0.01)
            read_countersignatures(job, channel)
        honest = self.node.sign(job, (), Finish.STOP).message
        assert job.terms is not None
        self.receipt = bill_everything(self.node, honest, job.terms.lease.message.units_max)
        self.has_signed.set()
        await trio.sleep(60)


def bill_everything(node: ScriptedNode, honest: Receipt, units: Units) -> Signed[Receipt]:
    amount_nano = charge_nano(PRICE, units, Finish.STOP)
    return seal(node.key, replace(honest, units=units, amount_nano=amount_nano))


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


async def buy_from_liar(market: SmallMarket, liar: Liar) -> Signed[Receipt]:
    """The client dies with what it got: no word of it reaches the coordinator."""
    spec = market.spec(max_tokens=1_000)
    async with market.client.buy(spec, market.buyer) as stream:
        for _ in range(liar.tokens):
            await stream.__anext__()
        with trio.fail_after(5), trio.move_on_after(1):
            # Progress that follows the last token is signed for in here.
            await stream.__anext__()
        await liar.has_signed.wait()
        market.network.kill(market.buyer.peer_id)
    assert liar.receipt is not None
    return liar.receipt


async def test_a_job_that_no_client_opened_is_paid_nothing(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        async with market.client.buy(market.spec(), market.buyer) as stream:
            lease = stream.granted.lease
            market.network.kill(market.buyer.peer_id)
        plain = node.sign_unopened(lease, (), Finish.STOP).message
        await node.hand_in(bill_everything(node, plain, lease.message.units_max))
        await trio.sleep(LONE_RECEIPT_IS_DUE_S)
        assert spent(market) == 0


async def test_links_that_the_client_did_not_sign_are_refused(autojump_clock: MockClock) -> None:
    liars: list[Liar] = []
    async with open_small_market(
        Script.ANSWER, adjust=lambda nodes: liars.append(Liar(nodes, tokens=40))
    ) as market:
        receipt = await buy_from_liar(market, liars[0])
        links = receipt.message.countersigned
        assert links is not None
        forged = replace(receipt.message, countersigned=replace(links, index=links.index + 1))
        with pytest.raises(RemoteProtocolError) as caught:
            await liars[0].node.hand_in(seal(liars[0].node.key, forged))
        assert caught.value.code is Code.BAD_SIGNATURE


@pytest.mark.parametrize(("tokens", "paid_at_most"), [(1, 16), (20, 32), (40, 48)])
async def test_a_node_gains_at_most_a_window_beyond_what_it_sent(
    autojump_clock: MockClock, tokens: int, paid_at_most: int
) -> None:
    liars: list[Liar] = []
    async with open_small_market(
        Script.ANSWER, adjust=lambda nodes: liars.append(Liar(nodes, tokens=tokens))
    ) as market:
        receipt = await buy_from_liar(market, liars[0])
        await liars[0].node.hand_in(receipt)
        await trio.sleep(LONE_RECEIPT_IS_DUE_S)
        # The input step of this lease is one window: the input, 7 tokens, is signed as at most 16.
        most = Units(input_tokens=16, output_tokens=paid_at_most)
        least = Units(input_tokens=INPUT_UNITS.input_tokens, output_tokens=paid_at_most - 16)
        paid_nano = spent(market)
        assert charge_nano(PRICE, least, Finish.STOP) <= paid_nano
        assert paid_nano <= charge_nano(PRICE, most, Finish.STOP)


async def test_a_client_that_was_cut_off_may_still_say_that_it_agrees(
    autojump_clock: MockClock,
) -> None:
    """What it signed did not arrive in time. The node lost nothing, and the client's record must
    not say for ever that it does not sign."""
    async with open_small_market(Script.ANSWER) as market:
        async with market.client.buy(market.spec(), market.buyer) as stream:
            _ = [chunk async for chunk in stream]
            market.network.kill(market.buyer.peer_id)
            result = stream.result
        assert result is not None
        (part,) = result.parts
        assert part.receipt is not None
        assert part.acceptance is not None
        await market.nodes[0].hand_in(part.receipt)
        await trio.sleep(LONE_RECEIPT_IS_DUE_S)
        assert spent(market) == result.amount_nano, "the links that did arrive cover all of it"
        record = market.coordinator.leases.clients.look_up(market.buyer.peer_id)
        assert (record.signed, record.unsigned) == (0.0, 1.0)
        other = seal(
            market.buyer, replace(part.acceptance.message, receipt_digest=sha256_digest(b""))
        )
        with pytest.raises(RemoteProtocolError):
            await market.coordinator.lease_service.settle(part.receipt, other)
        for _ in range(2):
            await market.coordinator.lease_service.settle(part.receipt, part.acceptance)
            assert (record.signed, record.unsigned) == (1.0, 0.0), "and only once"

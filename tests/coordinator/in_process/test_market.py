"""The gateway's view of a real coordinator: models, health, and budgets that hold under load."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.accounts import create_account
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from coordinator.db.api_keys import create_api_key, find_key_funds, list_api_keys, revoke_api_key
from coordinator.db.jobs import list_jobs
from coordinator.db.leases import list_leases_of
from coordinator.gateway.caller import Caller
from coordinator.in_process.api_keys import ApiKeyService
from coordinator.in_process.market import STARTING_S, LocalMarket, list_known_models
from coordinator.vault import Vault
from protocol.endings import Finish
from protocol.envelope import open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import Payer
from protocol.ids import PeerId
from protocol.messages import Lease, Task
from protocol.payload import Chunk
from protocol.pricing import Units, cost_nano
from protocol.receipts import charge_nano
from tests.coordinator.small_market import (
    DIGEST,
    INPUT_UNITS,
    MODEL,
    PRICE,
    WORDS,
    Script,
    ScriptedNode,
    SmallMarket,
    give_credit,
    open_small_market,
)

COST_NANO = charge_nano(PRICE, Units(INPUT_UNITS.input_tokens, len(WORDS)), Finish.STOP)


class Shop:
    """A market with a user who holds an API key, as the gateway meets them."""

    def __init__(self, market: SmallMarket, *, budget_nano: int | None = None) -> None:
        self.small = market
        vault = Vault(market.coordinator.key)
        entropy = market.network.rng.randbytes
        now_ms = market.clock.now_ms()
        with market.database.transaction() as conn:
            account = create_account(
                conn, "ada", peer_id=None, vault=vault, clock=market.clock, entropy=entropy
            )
            give_credit(conn, PeerId(account.id), 10**9, now_ms)
            self.secret, key = create_api_key(
                conn, account.id, "", now_ms=now_ms, entropy=entropy, budget_nano=budget_nano
            )
        self.key_id = key.id
        self.keys = ApiKeyService(market.database, vault)
        self.market = LocalMarket(market.coordinator, self.keys)

    async def caller(self) -> Caller:
        found = await self.market.authenticate(self.secret)
        assert found is not None
        return found

    def spec(self, caller: Caller) -> JobSpec:
        return replace(self.small.spec(), payer=Payer(caller.key_id))

    async def settled(self) -> None:
        await self.small.coordinator.client.wait_settled()

    async def buy(self, caller: Caller) -> str:
        async with self.market.open_job(caller, self.spec(caller)) as job:
            return "".join([chunk.text async for chunk in job])

    def spent_nano(self) -> int:
        with self.small.database.transaction() as conn:
            (key,) = list_api_keys(conn)
        return key.spent_nano


def ceiling_nano(small: SmallMarket) -> int:
    """What one job holds."""
    return cost_nano(PRICE, small.spec().units_max)


async def test_models_are_what_the_nodes_offer(autojump_clock: MockClock) -> None:
    def reprice(nodes: list[ScriptedNode]) -> None:
        nodes[1].price = replace(PRICE, output_nano_per_mtok=90_000_000_000)

    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=reprice) as small:
        market = Shop(small).market
        (model,) = market.models()
        assert (model.name, model.digest, model.task) == (MODEL, DIGEST, Task.CAUSAL_LM)
        assert (model.nodes, model.context_tokens, model.quantization) == (2, 2_048, "bf16")
        assert model.price_from == PRICE
        assert model.price_to.output_nano_per_mtok == 90_000_000_000
        assert market.model(MODEL) == market.model(DIGEST) == model
        assert market.model("nothing") is None
        assert market.health().reason == ""


async def test_an_empty_market_is_not_healthy(autojump_clock: MockClock) -> None:
    async with open_small_market() as small:
        market = Shop(small).market
        assert market.models() == ()
        assert market.health().reason


async def test_a_key_without_a_budget_spends_its_accounts_money(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small)
        assert await shop.buy(await shop.caller()) == "".join(WORDS)
        await small.coordinator.client.wait_settled()
        assert shop.spent_nano() == COST_NANO
        small.assert_books_are_closed()


async def test_a_budget_is_spent_to_its_end_and_not_beyond(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small) + COST_NANO)
        caller = await shop.caller()
        assert await shop.buy(caller) == "".join(WORDS)
        await shop.settled()
        assert await shop.buy(caller) == "".join(WORDS)
        await shop.settled()
        with pytest.raises(JobFailed, match="the budget of this API key has 0") as caught:
            await shop.buy(caller)
        assert caught.value.code is Code.BUDGET_EXCEEDED
        assert shop.spent_nano() == 2 * COST_NANO
        small.assert_books_are_closed()


async def test_a_budget_of_nothing_buys_nothing(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small, budget_nano=0)
        with pytest.raises(JobFailed, match="the budget of this API key has 0") as caught:
            await shop.buy(await shop.caller())
        assert caught.value.code is Code.BUDGET_EXCEEDED
        assert shop.spent_nano() == 0
        small.assert_books_are_closed()


async def test_a_budget_that_jobs_hold_is_worth_coming_back_for(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG, Script.HANG) as small, trio.open_nursery() as nursery:
        shop = Shop(small, budget_nano=ceiling_nano(small) * 3 // 2)
        caller = await shop.caller()
        nursery.start_soon(shop.buy, caller)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(JobFailed) as held:
            await shop.buy(caller)
        nursery.cancel_scope.cancel()
    assert held.value.code is Code.BUDGET_EXCEEDED
    assert held.value.retry_after_ms is not None


async def test_a_budget_that_is_too_small_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small) - 1)
        with pytest.raises(JobFailed) as short:
            await shop.buy(await shop.caller())
    assert (short.value.code, short.value.retry_after_ms) == (Code.BUDGET_EXCEEDED, None)


async def test_a_session_stays_at_its_node(autojump_clock: MockClock) -> None:
    async with open_small_market(*[Script.ANSWER] * 5) as small:
        nodes = set()
        for _ in range(6):
            spec = replace(small.spec(), session="s-1")
            async with small.client.buy(spec, small.buyer) as purchase:
                async for _ in purchase:
                    pass
                terms, _ = purchase.ended()
            nodes.add(terms.node)
            await small.client.wait_settled()
        assert len(nodes) == 1


async def test_jobs_at_once_cannot_overspend_together(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as small:
        shop = Shop(small, budget_nano=2 * ceiling_nano(small))
        caller = await shop.caller()
        answers: list[str] = []
        refusals: list[Code] = []

        async def buy() -> None:
            try:
                answers.append(await shop.buy(caller))
            except JobFailed as failure:
                refusals.append(failure.code)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(buy)
        assert len(answers) == 2
        assert refusals == [Code.BUDGET_EXCEEDED] * 4


async def test_a_job_that_delivered_nothing_gives_its_reservation_back(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.BAD_INPUT) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small))
        caller = await shop.caller()
        with pytest.raises(JobFailed) as caught:
            await shop.buy(caller)
        assert caught.value.code is Code.PROMPT_TOO_LONG
        await shop.settled()
        small.nodes[0].script = Script.ANSWER
        assert await shop.buy(caller) == "".join(WORDS)


async def test_a_job_left_early_keeps_its_ceiling_reserved(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small))
        caller = await shop.caller()
        async with shop.market.open_job(caller, shop.spec(caller)) as job:
            assert (await anext(aiter(job))).text == WORDS[0]
        with pytest.raises(JobFailed):
            await shop.buy(caller)
        await shop.settled()
        assert 0 < shop.spent_nano() < ceiling_nano(small)


async def test_a_cut_job_counts_until_its_receipt_has_come_or_can_come_no_more(
    autojump_clock: MockClock,
) -> None:
    """However long that takes: a node may hand it in a minute after the deadline."""
    async with open_small_market(Script.VANISH_MIDWAY) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small) + COST_NANO // 2)
        caller = await shop.caller()
        with pytest.raises(JobFailed):
            await shop.buy(caller)
        small.nodes[0].script = Script.ANSWER
        with pytest.raises(JobFailed) as caught:
            await shop.buy(caller)
        assert caught.value.code is Code.BUDGET_EXCEEDED
        await trio.sleep(100)
        keys = await small.database.read(find_key_funds, {shop.key_id})
        assert keys[shop.key_id].left_nano == ceiling_nano(small) + COST_NANO // 2


async def test_a_node_that_fails_before_its_output_takes_nothing_of_the_budget(
    autojump_clock: MockClock,
) -> None:
    """The hold of the failed attempt is still there when the job is leased to the next node."""
    async with open_small_market(Script.VANISH_AT_ONCE, Script.VANISH_AT_ONCE) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small))
        caller = await shop.caller()
        with pytest.raises(JobFailed) as caught:
            await shop.buy(caller)
        assert caught.value.code is Code.NODE_LOST
        assert sum(node.jobs_opened for node in small.nodes) == 2


async def test_a_budget_chooses_the_node_that_it_can_pay(autojump_clock: MockClock) -> None:
    def reprice(nodes: list[ScriptedNode]) -> None:
        nodes[0].price = replace(PRICE, output_nano_per_mtok=90_000_000_000)

    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=reprice) as small:
        shop = Shop(small, budget_nano=ceiling_nano(small))
        caller = await shop.caller()
        assert await shop.buy(caller) == "".join(WORDS)
        assert small.nodes[1].jobs_opened == 1


async def test_a_restarted_market_remembers_which_models_it_sold(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small)
        assert shop.market.is_expected("anything")
        await trio.sleep(STARTING_S)
        assert not shop.market.is_expected(MODEL)
        await shop.buy(await shop.caller())
        assert shop.market.is_expected(MODEL)
        known = await small.database.read(list_known_models, now_ms=small.clock.now_ms())
        assert known == {MODEL, DIGEST}
        restarted = LocalMarket(small.coordinator, shop.keys, known=known)
        await trio.sleep(STARTING_S)
        assert restarted.is_expected(MODEL)
        assert not restarted.is_expected("anything")
        a_day_later_ms = small.clock.now_ms() + 24 * 3_600_000
        assert not await small.database.read(list_known_models, now_ms=a_day_later_ms)


async def test_a_key_that_was_revoked_after_it_was_looked_up_buys_nothing(
    autojump_clock: MockClock,
) -> None:
    """A request's body may take a minute: what was read before it decides nothing."""
    async with open_small_market(Script.ANSWER) as small:
        shop = Shop(small)
        caller = await shop.caller()
        with small.database.transaction() as conn:
            revoke_api_key(conn, shop.key_id, now_ms=small.clock.now_ms())
        with pytest.raises(JobFailed) as caught:
            await shop.buy(caller)
        assert caught.value.code is Code.UNKNOWN_API_KEY
        assert shop.spent_nano() == 0


async def test_what_came_to_nothing_holds_no_money_whatever_its_node_says_later(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.HANG) as small:
        shop = Shop(small)
        caller = await shop.caller()
        spec = shop.spec(caller)
        spec = replace(spec, constraints=replace(spec.constraints, max_latency_ms=200))
        with pytest.raises(JobFailed, match="max_latency"):
            async with shop.market.open_job(caller, spec):
                pass
        await shop.settled()
        small.assert_books_are_closed()
        (row,) = await small.database.read(list_jobs)
        (stored,) = await small.database.read(list_leases_of, row.client, row.job_id)
        lease = open_envelope(stored.envelope, Lease)
        node = small.nodes[0]
        receipt = node.sign_unopened(lease, (Chunk((1,), "late"),), Finish.CANCELLED)
        with pytest.raises(RemoteProtocolError) as caught:
            await node.hand_in(receipt)
        assert caught.value.code is Code.EXPIRED
        assert shop.spent_nano() == 0
        small.assert_books_are_closed()

"""A buyer that leaves at any moment: no money stays held, and nothing is paid that did not come."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.purchase import Purchase
from coordinator.db.accounts import find_account
from coordinator.ledger.accounts import account_of
from protocol.pricing import Units, cost_nano
from tests.coordinator.in_process.test_market import Shop
from tests.coordinator.small_market import (
    INPUT_UNITS,
    PRICE,
    Script,
    SmallMarket,
    open_small_market,
)

Buy = Callable[[], AbstractAsyncContextManager[Purchase]]
# More steps than a whole purchase has.
STEPS = range(1, 60)


class Leaver(trio.abc.Instrument):
    """Cancels a task's scope at one of its steps."""

    def __init__(self, at_step: int) -> None:
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        self._left = at_step

    @property
    def is_over(self) -> bool:
        return self._left <= 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self._left -= 1
            if not self._left:
                self.scope.cancel()


async def leave_at(step: int, buy: Buy) -> tuple[int, bool]:
    """How many tokens came, and whether the buyer left before the end."""
    leaver, tokens = Leaver(step), 0
    trio.lowlevel.add_instrument(leaver)
    try:
        with leaver.scope:
            leaver.task = trio.lowlevel.current_task()
            async with buy() as job:
                async for chunk in job:
                    tokens += len(chunk.token_ids)
    except JobFailed:
        pass
    finally:
        trio.lowlevel.remove_instrument(leaver)
    return tokens, leaver.scope.cancelled_caught


def paid(market: SmallMarket) -> int:
    """What its nodes have got."""
    with market.database.transaction() as conn:
        accounts = [find_account(conn, account_of(node.key.peer_id)) for node in market.nodes]
    return sum(account.posted_nano for account in accounts if account is not None)


@pytest.mark.parametrize("is_local", [True, False], ids=["gateway", "remote"])
@pytest.mark.parametrize(
    "scripts",
    [
        (Script.ANSWER,),
        (Script.HANG,),
        (Script.REFUSE, Script.ANSWER),
        # Hedged: while the first one is late, a second one is opened beside it.
        (Script.HANG, Script.ANSWER),
    ],
    ids=lambda scripts: "-".join(script.name for script in scripts),
)
async def test_no_hold_is_left_wherever_a_buyer_leaves(
    scripts: tuple[Script, ...], is_local: bool, autojump_clock: MockClock
) -> None:
    left = 0
    for step in STEPS:
        async with open_small_market(*scripts, seed=step) as market:

            @asynccontextmanager
            async def buy(market: SmallMarket = market) -> AsyncIterator[Purchase]:
                if is_local:
                    shop = Shop(market)
                    caller = await shop.caller()
                    async with shop.market.open_job(caller, shop.spec(caller)) as job:
                        yield job
                else:
                    spec = replace(market.spec(), hedge=len(scripts) > 1)
                    async with market.client.buy(spec, market.buyer) as job:
                        yield job

            tokens, has_left = await leave_at(step, buy)
            left += has_left
            await trio.sleep(10)
            report = market.audit()
            assert report.held_nano == 0, f"left at step {step}"
            # A node that is left after it took the job is paid for the input.
            inputs = INPUT_UNITS.input_tokens * len(scripts)
            most_nano = cost_nano(PRICE, Units(inputs, tokens + 2))
            assert paid(market) <= most_nano, f"left at step {step} after {tokens} tokens"
        if not has_left:
            break
    assert left > 5, "or the test shows nothing"

"""Refusals for want of money: whether the money is there and only held by jobs that run, and then
when it comes back."""

from coordinator.db.accounts import find_account
from coordinator.db.api_keys import find_key_funds
from coordinator.db.engine import Database
from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.registry import LeaseRegistry
from coordinator.ledger.accounts import account_of
from coordinator.market.market import Market
from protocol.clock import Clock
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import Payer
from protocol.messages import JobRequest

_CODES = frozenset({Code.OUT_OF_FUNDS, Code.BUDGET_EXCEEDED})
# Sooner, a client would only find the same jobs; later, it would rather ask again.
_RETRY_MIN_MS, _RETRY_MAX_MS = 250, 60_000


class HeldMoney:
    """Looks only when a lease was refused, so that a lease that is granted pays nothing for it."""

    def __init__(
        self, market: Market, leases: LeaseRegistry, database: Database, clock: Clock
    ) -> None:
        self._market = market
        self._leases = leases
        self._database = database
        self._clock = clock

    async def explain(
        self, error: RemoteProtocolError, request: Signed[JobRequest], payer: Payer | None
    ) -> RemoteProtocolError:
        """The refusal, with when to come back if waiting helps. Any other error as it is."""
        if error.code not in _CODES or error.retry_after_ms is not None:
            return error
        key = payer if error.code is Code.BUDGET_EXCEEDED else None
        holding = self._leases.holding(
            request.message.client, key.api_key_id if key is not None else None
        )
        held_nano = sum(opened.most_nano for opened in holding)
        left_nano = await self._left_nano(request.message, key) if holding else 0
        if not holding or not self._would_do(request, left_nano + held_nano):
            return error
        now_ms = self._clock.now_ms()
        return RemoteProtocolError(
            f"{error}; jobs that run now hold it",
            code=error.code,
            retry_after_ms=min(_ends_in_ms(opened, now_ms) for opened in holding),
        )

    async def _left_nano(self, asked: JobRequest, key: Payer | None) -> int:
        if key is not None:
            funds = await self._database.read(find_key_funds, {key.api_key_id})
            return funds[key.api_key_id].left_nano or 0 if key.api_key_id in funds else 0
        account = await self._database.read(find_account, account_of(asked.client))
        return account.available_nano if account is not None else 0

    def _would_do(self, request: Signed[JobRequest], budget_nano: int) -> bool:
        """Whether a node would take the job for this much, now or later."""
        asked, now_ms = request.message, self._clock.now_ms()
        deadline_at_ms = self._leases.jobs.deadline_at_ms(request, now_ms=now_ms)
        try:
            self._market.choose(
                asked,
                exclude=frozenset(),
                deadline_at_ms=deadline_at_ms,
                budget_nano=max(0, budget_nano),
            )
        except RemoteProtocolError as error:
            return error.code is Code.NO_NODE_FITS
        return True


def _ends_in_ms(opened: OpenLease, now_ms: int) -> int:
    """When a lease's job should have ended, by what its node claims of itself."""
    granted, claim = opened.lease.message, opened.claim
    expected_ms = 0.0
    if claim is not None and not opened.is_over:
        expected_ms = claim.first_ms + claim.step_ms * granted.units_max.output_tokens
    left_ms = granted.issued_at_ms + round(expected_ms) - now_ms
    return min(max(left_ms, _RETRY_MIN_MS), _RETRY_MAX_MS)

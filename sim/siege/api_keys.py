"""A5: attacks on an API key's budget and on its end, through bodies that arrive slowly."""

import trio

from sim.siege.attack import Attack, AttackResult
from sim.siege.gateway_user import GatewayUser, SlowRequest
from sim.siege.ground import Ground
from sim.siege.staged_job import answer
from sim.siege.staged_node import StagedNode, staged

_BUDGET_NANO = 250_000
_SLOW_BODIES = 8
_QUICK_ASKS_MAX = 20
_PATH = "/v1/completions"


async def slow_body_budget(ground: Ground) -> AttackResult:
    """Requests whose bodies began before the budget was spent end after it was."""
    user = await ground.open_gateway_account(budget_nano=_BUDGET_NANO)
    async with staged(ground.endpoint, StagedNode("a5", answer)):
        slow = [await _open(user, "a5") for _ in range(_SLOW_BODIES)]
        owned_nano = ground.books.owned_nano(user.peer_id)
        for _ in range(_QUICK_ASKS_MAX):
            reply = await user.complete("a5")
            if reply.status != 200:
                break
        await ground.books.wait_no_holds(user.peer_id)
        before_nano = owned_nano - ground.books.owned_nano(user.peer_id)
        statuses = await _finish(slow)
        await ground.books.wait_no_holds(user.peer_id)
        under_nano = owned_nano - ground.books.owned_nano(user.peer_id)
    return AttackResult(
        held=0 < before_nano <= under_nano <= _BUDGET_NANO,
        honest_before=f"spent {before_nano:,} of a budget of {_BUDGET_NANO:,} nano",
        honest_under=f"spent {under_nano:,}; {statuses.count(200)} of {_SLOW_BODIES} slow "
        "requests were answered",
    )


async def revoked_key(ground: Ground) -> AttackResult:
    """A thief of a key holds requests open, and completes them after the key was revoked."""
    user = await ground.open_gateway_account()
    async with staged(ground.endpoint, StagedNode("a5r", answer)):
        before = await user.complete("a5r")
        await ground.books.wait_no_holds(user.peer_id)  # The answer comes before its settlement.
        slow = [await _open(user, "a5r") for _ in range(_SLOW_BODIES)]
        owned_nano = ground.books.owned_nano(user.peer_id)
        await ground.books.revoke(user.key_id)
        statuses = await _finish(slow)
        await ground.books.wait_no_holds(user.peer_id)
        paid_nano = owned_nano - ground.books.owned_nano(user.peer_id)
    return AttackResult(
        held=before.status == 200 and paid_nano == 0 and 200 not in statuses,
        honest_before=f"status {before.status} with the key",
        honest_under=f"after it was revoked: statuses {sorted(set(statuses))}, paid {paid_nano:,} "
        "nano",
    )


async def _open(user: GatewayUser, model: str) -> SlowRequest:
    return await user.open_slowly(_PATH, {"model": model, "prompt": "Say hello", "max_tokens": 8})


async def _finish(requests: list[SlowRequest]) -> list[int]:
    """Complete them all at once. Returns their statuses."""
    statuses: list[int] = []

    async def finish(request: SlowRequest) -> None:
        statuses.append(await request.finish())

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(finish, request)
    return statuses


ATTACKS = (
    Attack("slow-body-budget", "A5", "spend a budget through slow bodies", slow_body_budget),
    Attack("revoked-key", "A5", "finish requests after the key's end", revoked_key),
)

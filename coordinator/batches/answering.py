"""The answers of some lines, however often that has to be tried."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from coordinator.batches.pieces import Piece
from coordinator.batches.retries import GiveUp, Split, next_step
from coordinator.buyer.errors import JobFailed
from coordinator.gateway.errors import ApiError, error_of
from protocol.errors import Code


@dataclass(frozen=True, slots=True)
class Trials:
    """`buy` raises JobFailed or ApiError, or has kept the answers; `fail` keeps why there are none.
    `tell` is told what the lines wait for, None when they are answered."""

    buy: Callable[[Piece], Awaitable[None]]
    fail: Callable[[Piece, ApiError], Awaitable[None]]
    tell: Callable[[Code | None], None]

    async def answer(self, piece: Piece) -> None:
        """Returns when each line has an answer or has failed."""
        waits = failures = 0
        while True:
            try:
                await self.buy(piece)
            except ApiError as error:
                await self.fail(piece, error)
                return
            except JobFailed as failure:
                step = next_step(
                    failure.code,
                    waits=waits,
                    failures=failures,
                    lines=len(piece.lines),
                    is_billed=failure.delivered,
                )
                if isinstance(step, Split):
                    for half in piece.halves():
                        await self.answer(half)
                    return
                if isinstance(step, GiveUp):
                    await self.fail(piece, _error_of(piece, failure))
                    return
                self.tell(step.why)
                failures += step.is_failure
                waits += not step.is_failure
                await trio.sleep(step.seconds)
            else:
                self.tell(None)
                return


def _error_of(piece: Piece, failure: JobFailed) -> ApiError:
    return error_of(
        failure.code,
        str(failure),
        is_billed=failure.delivered,
        input_param=piece.orders[0].input_param,
    )

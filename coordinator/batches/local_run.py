"""A batch from the files of a person at a terminal: answers are kept as they come.

What is kept is done: a run that was interrupted goes on with the lines that are not.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import trio

from coordinator.batches.answering import Trials
from coordinator.batches.buying import open_answers
from coordinator.batches.lines import PlannedLine, RefusedLine
from coordinator.batches.pieces import LineAnswer, Piece, group, write_answers
from coordinator.buyer.client import MarketClient
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError
from coordinator.gateway.market_side.market import ModelInfo
from protocol.clock import Clock, Entropy
from protocol.errors import Code
from protocol.ids import ULID_ENTROPY_BYTES, JobId, new_ulid
from protocol.keys import SigningKey
from protocol.money import format_credits

# Jobs at once: a node's seats are few, and each job holds its lines in memory.
JOBS_AT_ONCE = 16

_NO_MONEY = {
    Code.UNKNOWN_ACCOUNT: "this key has no account: `coordinator whoami` prints its id, for the "
    "operator of the market",
}


class AnswerKeeper(Protocol):
    """Where answers go. Both block, and return when the lines are durable."""

    def keep(self, answers: Sequence[LineAnswer]) -> None: ...

    def keep_failure(self, custom_id: str, error: ApiError) -> None: ...


class ClientMarket:
    """The market as a client elsewhere has it: it buys, and knows no model before it is leased."""

    def __init__(self, client: MarketClient) -> None:
        self._client = client

    def model(self, name: str) -> ModelInfo | None:
        return None

    def is_expected(self, name: str) -> bool:
        return False

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator[Purchase]:
        """Raises JobFailed."""
        # The key's own account pays: there is no API key.
        async with self._client.buy(replace(spec, payer=None), caller.signing_key) as purchase:
            yield purchase


@dataclass(slots=True)
class LocalProgress:
    """How far a run is."""

    total: int
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    cost_nano: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed

    def __str__(self) -> str:
        text = f"{self.done} of {self.total} lines, {format_credits(self.cost_nano)} credits"
        return f"{text}, {self.failed} failed" if self.failed else text


@dataclass
class LocalRun:
    """Buys the answers of `lines` with a key."""

    client: MarketClient
    key: SigningKey
    keeper: AnswerKeeper
    progress: LocalProgress
    clock: Clock
    entropy: Entropy
    _refused: list[RefusedLine] = field(default_factory=list)

    async def run(self, lines: Iterable[PlannedLine | RefusedLine]) -> None:
        """Until each line has an answer or has failed. Raises JobFailed if there is no money."""
        trials = Trials(self._buy, self._fail, self._tell)
        places = trio.Semaphore(JOBS_AT_ONCE)

        async def answer(piece: Piece) -> None:
            try:
                await trials.answer(piece)
            finally:
                places.release()

        pieces = group(self._good(lines))
        async with trio.open_nursery() as nursery:
            while True:
                await places.acquire()
                piece = await trio.to_thread.run_sync(partial(next, pieces, None))
                await self._refuse_bad_lines()
                if piece is None:
                    break
                nursery.start_soon(answer, piece)

    def _good(self, lines: Iterable[PlannedLine | RefusedLine]) -> Iterator[PlannedLine]:
        for line in lines:
            if isinstance(line, PlannedLine):
                yield line
            else:
                self._refused.append(line)

    async def _refuse_bad_lines(self) -> None:
        refused, self._refused = self._refused, []
        for line in refused:
            await self._keep_failure(line.custom_id, line.error)

    async def _buy(self, piece: Piece) -> None:
        caller = Caller("", self.key)
        orders = piece.orders
        job_ids = [
            JobId(new_ulid(self.clock.now_ms(), self.entropy(ULID_ENTROPY_BYTES))) for _ in orders
        ]
        market = ClientMarket(self.client)
        async with open_answers(market, caller, orders, job_ids) as choices:
            # Shielded: what is left here is signed for, also by a run that is interrupted.
            with trio.CancelScope(shield=True):
                created_s = self.clock.now_ms() // 1_000
                answers = await trio.to_thread.run_sync(
                    partial(write_answers, piece, choices, created_s=created_s)
                )
                await trio.to_thread.run_sync(self.keeper.keep, answers)
                self._count(answers)

    def _count(self, answers: Sequence[LineAnswer]) -> None:
        progress = self.progress
        progress.completed += len(answers)
        progress.cost_nano += sum(answer.cost_nano for answer in answers)
        progress.input_tokens += sum(answer.units.input_tokens for answer in answers)
        progress.cached_tokens += sum(answer.units.cached_tokens for answer in answers)
        progress.output_tokens += sum(answer.units.output_tokens for answer in answers)
        progress.images += sum(answer.units.images for answer in answers)

    async def _fail(self, piece: Piece, error: ApiError) -> None:
        for line in piece.lines:
            await self._keep_failure(line.custom_id, error)

    async def _keep_failure(self, custom_id: str, error: ApiError) -> None:
        await trio.to_thread.run_sync(self.keeper.keep_failure, custom_id, error)
        self.progress.failed += 1

    def _tell(self, code: Code | None) -> None:
        if code is not None:
            raise JobFailed(_NO_MONEY.get(code, "the account has no credits left"), code=code)

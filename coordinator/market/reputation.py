"""What this coordinator has seen of each node: success, refusals, and how true its claims are.

Keyed by node id and kept when a node leaves, so that reconnecting or restarting buys no node a
clean slate. `Reputation` is synchronous state: callers report what happened and send nothing
themselves. The numbers that matching reads of it are in `standing_rows`.
"""

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from coordinator.market.breaker import ACCUSERS_TO_OPEN, Breaker, BreakerState, Cooldown
from coordinator.market.seats import SEATS_AT_START, is_used
from coordinator.market.standing_rows import NO_RATIOS, Ratios, StandingRows
from coordinator.market.standings import FAILURES, REFUSALS, SUCCESSES, Standings
from coordinator.market.steadiness import Steadiness
from protocol.blame import Blame
from protocol.errors import Code
from protocol.ids import PeerId

# Twice the nodes that a book holds: enough to remember who left, about 120 MB at most.
NODES_MAX = 200_000
# How far to look for a departed node whose breaker is not open before forgetting the oldest anyway.
_FORGET_SCAN = 16

# What our own client saw of an answer is some proof of capacity, also where nothing was paid.
_FIRST_HAND_SEATS = 0.25


@dataclass(frozen=True, slots=True)
class Source:
    """Who reports, and how much the report counts, from 0 to 1 (`market.voices`). What our own
    client saw is first-hand; everything else may have been staged. `at_once` is how many jobs the
    node had then."""

    client: PeerId
    weight: float = 1.0
    is_first_hand: bool = True
    at_once: int = 0


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """One node for people: `coordinator nodes` and the dashboard."""

    node: PeerId
    breaker: BreakerState
    blocked_until_ms: int
    is_unsteady: bool
    success_rate: float
    refusal_rate: float
    first_ratio: float
    decode_ratio: float
    successes: int
    failures: int
    refusals: int
    seats: int
    last_code: Code | None


@dataclass(slots=True)
class _Record:
    slot: int
    pins: int = 0
    successes: int = 0
    failures: int = 0
    refusals: int = 0
    last_code: Code | None = None
    breaker: Breaker = field(default_factory=Breaker)
    cooldown: Cooldown = field(default_factory=Cooldown)
    steadiness: Steadiness = field(default_factory=Steadiness)
    accusers: set[PeerId] = field(default_factory=set)
    # When it last failed as a node with a record of its own; what was under way then fails with it.
    fault_at_ms: int = -1


class Reputation:
    """Standing of every node that is in the book, and of those that left and are remembered.

    Each node has a row number ("slot") in one matrix, which matching reads for many nodes at once.
    """

    def __init__(
        self,
        *,
        rng: random.Random,
        nodes_max: int = NODES_MAX,
        seats_at_start: float = SEATS_AT_START,
    ) -> None:
        self._rng = rng
        self._nodes_max = nodes_max
        self._records: dict[PeerId, _Record] = {}
        self._departed: OrderedDict[PeerId, None] = OrderedDict()
        self._rows = StandingRows(seats_at_start=seats_at_start)

    def __len__(self) -> int:
        return len(self._records)

    # Who has a slot.

    def pin(self, node: PeerId) -> int:
        """The node's slot, which stays its own until as many `unpin` calls."""
        record = self._record(node)
        record.pins += 1
        self._departed.pop(node, None)
        return record.slot

    def unpin(self, node: PeerId) -> None:
        record = self._records[node]
        record.pins -= 1
        if record.pins == 0:
            self._departed[node] = None

    # What happened.

    def start_attempt(self, node: PeerId, *, now_ms: int) -> bool:
        """A job is about to be sent: after an outage this makes it the only probe. Returns whether
        it is one."""
        record = self._record(node)
        is_probe = record.breaker.on_attempt(now_ms)
        self._mirror(record)
        return is_probe

    def give_probe_back(self, node: PeerId) -> None:
        """The probe was not sent after all."""
        record = self._records.get(node)
        if record is not None:
            record.breaker.on_no_verdict()
            self._mirror(record)

    def record_success(
        self, node: PeerId, source: Source, *, now_ms: int, ratios: Ratios = NO_RATIOS
    ) -> None:
        """A report that counts for nothing is no reason to close a breaker either."""
        record = self._record(node)
        record.successes += 1
        record.last_code = None
        if source.is_first_hand or source.weight:
            record.breaker.on_success(now_ms)
            record.cooldown.on_success()
            record.accusers.clear()
        self._rows.count(record.slot, SUCCESSES, now_ms, source.weight)
        self._rows.earn_seats(record.slot, self._proof(record, source))
        self._rows.learn(record.slot, ratios, now_ms)
        self._mirror(record)

    def record_code(
        self,
        node: PeerId,
        code: Code,
        blame: Blame,
        source: Source,
        *,
        now_ms: int,
        retry_after_ms: int | None = None,
        ratios: Ratios = NO_RATIOS,
    ) -> None:
        """A job ended with an error. `ratios` count even so: a node that was too slow to meet the
        deadline has told us how slow."""
        record = self._record(node)
        record.last_code = code
        jitter = self._rng.random()
        if blame is Blame.FAILURE:
            self._record_failure(record, source, now_ms, jitter)
        else:
            record.breaker.on_no_verdict()
        if blame is Blame.REFUSAL:
            record.refusals += 1
            self._rows.count(record.slot, REFUSALS, now_ms, source.weight)
            if source.is_first_hand:
                self._rows.yield_seats(record.slot)
            record.cooldown.on_refusal(
                source.client, now_ms, retry_after_ms=retry_after_ms, jitter=jitter
            )
        elif blame is Blame.CLIENT:
            record.cooldown.on_blame(source.client, now_ms, jitter=jitter)
        self._rows.learn(record.slot, ratios, now_ms)
        self._mirror(record)

    def record_loss(self, node: PeerId, *, now_ms: int) -> None:
        """The node went away without notice."""
        record = self._record(node)
        record.steadiness.on_loss(now_ms)
        self._rows.note_losses(
            record.slot,
            lost_until_ms=record.steadiness.remembered_until_ms,
            unsteady_until_ms=record.steadiness.unsteady_until_ms,
        )

    # What it says.

    def standings(self, slots: NDArray[np.int64], *, now_ms: int) -> Standings:
        """The rows of these slots, as matching wants them."""
        return self._rows.read(slots, now_ms=now_ms)

    def standing(self, node: PeerId, *, now_ms: int) -> NodeStanding | None:
        """One node, or None if nothing is known of it."""
        record = self._records.get(node)
        return None if record is None else self._summaries([(node, record)], now_ms)[0]

    def is_proven(self, node: PeerId, *, now_ms: int) -> bool:
        """Whether the node has a record of its own."""
        record = self._records.get(node)
        return record is not None and self._is_proven(record, now_ms)

    def had_a_record(self, node: PeerId, *, at_ms: int, now_ms: int) -> bool:
        """Whether the node was proven when a job was leased to it at `at_ms`, as far as that says
        something of its failure now: one crash ends all jobs that are under way."""
        record = self._records.get(node)
        if record is None:
            return False
        return self._is_proven(record, now_ms) or at_ms <= record.fault_at_ms

    def snapshot(self, *, now_ms: int) -> tuple[NodeStanding, ...]:
        """Every node, in order of ids."""
        return tuple(self._summaries(sorted(self._records.items(), key=itemgetter(0)), now_ms))

    def _summaries(
        self, records: Sequence[tuple[PeerId, _Record]], now_ms: int
    ) -> list[NodeStanding]:
        rows = self.standings(np.array([r.slot for _, r in records], np.int64), now_ms=now_ms)
        estimates = zip(
            rows.success().tolist(),
            rows.refusal_rate().tolist(),
            rows.first_ratio().tolist(),
            rows.decode_ratio().tolist(),
            strict=True,
        )
        return [
            NodeStanding(
                node=node,
                breaker=record.breaker.state(now_ms),
                blocked_until_ms=max(record.breaker.blocked_until_ms, record.cooldown.until_ms),
                is_unsteady=record.steadiness.unsteady_until_ms > now_ms,
                success_rate=success,
                refusal_rate=refusal,
                first_ratio=first,
                decode_ratio=decode,
                successes=record.successes,
                failures=record.failures,
                refusals=record.refusals,
                seats=self._rows.seats(record.slot),
                last_code=record.last_code,
            )
            for (node, record), (success, refusal, first, decode) in zip(
                records, estimates, strict=True
            )
        ]

    # Below: one record, one row.

    def _is_proven(self, record: _Record, now_ms: int) -> bool:
        return bool(self.standings(np.array([record.slot]), now_ms=now_ms).is_proven()[0])

    def _proof(self, record: _Record, source: Source) -> float:
        """How much of a seat an answer earns."""
        if not source.is_first_hand:
            return source.weight
        if source.weight and is_used(self._rows.seats(record.slot), source.at_once):
            return 1.0
        return max(source.weight, _FIRST_HAND_SEATS)

    def _record_failure(self, record: _Record, source: Source, now_ms: int, jitter: float) -> None:
        record.failures += 1
        self._rows.count(record.slot, FAILURES, now_ms, source.weight)
        if not source.is_first_hand:
            # One stranger could stage it; several distinct ones that pay are believed.
            if source.weight and len(record.accusers) < ACCUSERS_TO_OPEN:
                record.accusers.add(source.client)
            if len(record.accusers) < ACCUSERS_TO_OPEN:
                return
            record.accusers.clear()
        if self._is_proven(record, now_ms):
            record.fault_at_ms = now_ms
        self._rows.lose_seats(record.slot)
        fails_often = self._rows.fails_often(record.slot, now_ms)
        if record.breaker.on_failure(now_ms, fails_often=fails_often, jitter=jitter):
            # After an outage a node is as unknown as a new one, and is explored like one.
            self._rows.make_unfamiliar(record.slot)

    def _mirror(self, record: _Record) -> None:
        self._rows.block(
            record.slot,
            open_until_ms=record.breaker.blocked_until_ms,
            cooling_until_ms=record.cooldown.until_ms,
        )

    # Below: slots.

    def _record(self, node: PeerId) -> _Record:
        record = self._records.get(node)
        if record is None:
            self._forget_if_full()
            record = self._records[node] = _Record(self._rows.take())
            self._departed[node] = None
        elif node in self._departed:
            self._departed.move_to_end(node)
        return record

    def _forget_if_full(self) -> None:
        """Drop the node longest unheard of that left the book, sparing those we have reason to
        remember: an open breaker is what reconnecting would like us to forget."""
        if len(self._records) < self._nodes_max or not self._departed:
            return
        oldest = next(iter(self._departed))
        for node, _ in zip(self._departed, range(_FORGET_SCAN), strict=False):
            if not self._records[node].breaker.open_until_ms:
                oldest = node
                break
        del self._departed[oldest]
        self._rows.give_back(self._records.pop(oldest).slot)

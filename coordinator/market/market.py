"""The market as one coordinator sees it: who offers what, how good they are, who should run a job.

Joins the offer book, reputation and matching behind the questions that the rest of the coordinator
asks. Synchronous and without I/O; the answers that travel are `protocol.services` bodies.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from coordinator.market.affinities import Affinities
from coordinator.market.breaker import BreakerState
from coordinator.market.client_waits import ClientWaits
from coordinator.market.first_outputs import FirstOutputs
from coordinator.market.matching import (
    HERE,
    Candidate,
    Job,
    Match,
    Reason,
    Vantage,
    match,
)
from coordinator.market.matching.claim import Claim
from coordinator.market.matching.quote import quote_reply, summary
from coordinator.market.offers import NodeEntry, OfferBook
from coordinator.market.passed_over import model_standing
from coordinator.market.recent_jobs import RecentJobs
from coordinator.market.reputation import NodeStanding, Reputation, Source
from coordinator.market.standing_rows import NO_RATIOS
from coordinator.market.steadiness import UNSTEADY
from coordinator.market.unreached import Unreached
from coordinator.market.voices import Voices
from protocol.blame import Blame, Observation
from protocol.clock import Clock
from protocol.endings import Finish
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.limits import FRAME_BYTES_MAX
from protocol.messages import JobRequest, Lease
from protocol.money import format_credits
from protocol.offers import ModelOffer
from protocol.receipts import charge_nano
from protocol.services import (
    NodesAsk,
    NodesReply,
    NodeSummary,
    QuoteAsk,
    QuoteReply,
)
from protocol.standing import ModelStanding, StandingReply

# A quote is read by people: the best few. Matching bounds the rejections that it names.
QUOTE_CANDIDATES_MAX = 20
# A page of signed offers of a few models each stays far below a frame; of the largest ones, fewer
# make a page. Half of a frame leaves room for what is said beside them.
NODES_PAGE = 20
NODES_BYTES_MAX = FRAME_BYTES_MAX // 2

# A node is given up for dead after several times what we expect of it, and never sooner than this:
# on a loaded machine, processes stand still for a second or two now and then.
FIRST_OUTPUT_FLOOR_MS = 5_000
GAP_FLOOR_MS = 5_000
_SILENCE_FACTOR = 4.0
# A load is as long as the disk takes: the same model took little less the last time.
_LOAD_FACTOR = 2.0
# One megabit a second, the slowest uplink that a client may have.
_UPLOAD_BYTES_PER_MS = 125

# What is said when nothing fits, by the reason that keeps most nodes away.
_ADVICE = {
    Reason.BUSY: "all fitting nodes are busy: try again shortly",
    Reason.MACHINE_UNPROVEN: "new nodes get few jobs until they have answered some: try again",
    Reason.PRICE_ABOVE_MAX: "raise max_price",
    Reason.COST_ABOVE_MAX: "raise the cost limit or lower max_tokens",
    Reason.LATENCY_ABOVE_MAX: "raise max_latency",
    Reason.CONTEXT_TOO_SHORT: "shorten the prompt or lower max_tokens",
    Reason.ISOLATION_TOO_WEAK: "accept a weaker isolation tier",
    Reason.FEATURES: "leave out what the model cannot do",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Which breakers' single probe a reservation took: the node's, and its machine's by row."""

    is_nodes: bool = False
    machine: int | None = None


NO_PROBE = Probe()


@dataclass(frozen=True, slots=True)
class Choice:
    """The node that shall run a job, how long the decision took, and how long a node of this speed
    may be silent. `usual_most_ms` is what 19 of 20 of its first outputs take, if that is known."""

    candidate: Candidate
    match_us: int
    upload_ms: float
    usual_most_ms: float | None

    @property
    def first_output_within_ms(self) -> int:
        """Several times what we expect of it by what was measured of its earlier jobs."""
        latency = self.candidate.latency
        expected_ms = latency.first_output_ms - latency.load_ms
        silent_ms = max(FIRST_OUTPUT_FLOOR_MS, _SILENCE_FACTOR * expected_ms)
        return int(silent_ms + _LOAD_FACTOR * latency.load_ms + self.upload_ms)

    @property
    def hedge_after_ms(self) -> int:
        """0 if there is no record."""
        return 0 if self.usual_most_ms is None else math.ceil(self.usual_most_ms + self.upload_ms)

    @property
    def gap_within_ms(self) -> int:
        return int(max(GAP_FLOOR_MS, _SILENCE_FACTOR * self.candidate.claim.step_ms))


class Market:
    """Offers, reputation and matching of one coordinator. `stopwatch_ns` times decisions."""

    def __init__(
        self,
        book: OfferBook,
        reputation: Reputation,
        *,
        clock: Clock,
        rng: random.Random,
        stopwatch_ns: Callable[[], int],
    ) -> None:
        self.book = book
        self.reputation = reputation
        self.unreached = Unreached()
        self._voices = Voices()
        self._waits = ClientWaits()
        self._affinities = Affinities()
        self._first_outputs = FirstOutputs()
        self._recent = RecentJobs()
        self._clock = clock
        self._rng = rng
        self._stopwatch_ns = stopwatch_ns

    def choose(
        self,
        request: JobRequest,
        *,
        exclude: frozenset[PeerId],
        deadline_at_ms: int,
        budget_nano: int | None = None,
        vantage: Vantage = HERE,
    ) -> Choice:
        """`deadline_at_ms` is the request's by our clock, which may differ from its client's;
        `budget_nano` is what the job may cost at most, whatever it asks for. `vantage` says
        where its client stands.

        Raises RemoteProtocolError: UNKNOWN_MODEL, NO_NODE_FITS, BUDGET_EXCEEDED.
        """
        started_ns = self._stopwatch_ns()
        job = replace(
            Job.of_request(request, exclude=exclude),
            deadline_at_ms=deadline_at_ms,
            resting=self._waits.nodes(request.client, self._clock.now_ms()),
            cache_at=self._affinities.find(request.client, request.affinity),
            vantage=vantage,
        )
        # Two, because matching never lets a newcomer be the only choice.
        found = self._match(_within(job, budget_nano), limit=2)
        if found.candidates or self.book.table(request.model) is not None:
            self._recent.note(job, found.candidates[0] if found.candidates else None)
        if not found.candidates and budget_nano is not None:
            found = self._match(job, limit=QUOTE_CANDIDATES_MAX)
            if found.candidates:
                raise _over_budget(found, budget_nano)
        if not found.candidates:
            raise _refusal(job, found)
        return Choice(
            found.candidates[0],
            match_us=(self._stopwatch_ns() - started_ns) // 1_000,
            upload_ms=request.payload_bytes / _UPLOAD_BYTES_PER_MS,
            usual_most_ms=self._usual_most_ms(found.candidates[0]),
        )

    def _usual_most_ms(self, chosen: Candidate) -> float | None:
        ratio = self._first_outputs.usual_most(chosen.node, chosen.model.manifest_digest)
        return None if ratio is None else chosen.latency.rtt_ms + ratio * chosen.claim.first_ms

    def reserve(self, lease: Lease, *, expires_at_ms: int, is_batch: bool) -> Probe:
        """Count a leased job against its node from now on, ahead of what the node reports. Returns
        what this took of the breakers, for `cancel`."""
        now_ms = self._clock.now_ms()
        entry, machine = self.book.get(lease.node), None
        is_unproven = not self.reputation.is_proven(lease.node, now_ms=now_ms)
        if entry is not None and is_unproven:
            is_probe = self.book.machines.on_attempt(entry.machine, now_ms)
            machine = entry.machine if is_probe else None
        is_nodes = self.reputation.start_attempt(lease.node, now_ms=now_ms)
        self.book.grant(
            lease.lease_id,
            lease.node,
            lease.model_digest,
            expires_at_ms=expires_at_ms,
            is_batch=is_batch,
        )
        return Probe(is_nodes, machine)

    def note_affinity(self, client: PeerId, affinity: tuple[bytes, ...], node: PeerId) -> None:
        """The money of this node's lease is held: the next input that begins alike may go there."""
        self._affinities.note(client, affinity, node)

    def cancel(self, lease: Lease, probe: Probe) -> None:
        """No job follows a `reserve`: give back the seat, and the probe if it took one."""
        if probe.is_nodes:
            self.reputation.give_probe_back(lease.node)
        if probe.machine is not None:
            self.book.machines.on_no_verdict(probe.machine)
        self.book.release(lease.lease_id)

    def quote(self, ask: QuoteAsk) -> QuoteReply:
        """Every candidate and every rejection with reasons; holds nothing."""
        job = Job.of_quote(ask)
        started_ns = self._stopwatch_ns()
        found = self._match(job, limit=QUOTE_CANDIDATES_MAX, explain=True)
        match_us = (self._stopwatch_ns() - started_ns) // 1_000
        if Reason.UNKNOWN_MODEL in found.counts:
            raise _refusal(job, found)
        return quote_reply(found, job, self.book, match_us=match_us)

    def nodes(self, ask: NodesAsk) -> NodesReply:
        """One page of nodes, in order of ids."""
        page = self.book.page(model=ask.model, after=ask.after, limit=NODES_PAGE)
        sizes = accumulate(len(entry.signed.raw) for entry in page)
        fits = max(1, sum(size <= NODES_BYTES_MAX for size in sizes))
        summaries = tuple(map(self._summary, page[:fits]))
        is_last = len(page) < NODES_PAGE and fits >= len(page)
        return NodesReply(summaries, next_after="" if is_last else page[fits - 1].node)

    def standing_of(self, node: PeerId) -> StandingReply:
        """How we see a node, and why the last jobs for its models went elsewhere."""
        entry = self.book.get(node)
        if entry is None:
            return StandingReply(is_known=False)
        summary = self._summary(entry)
        return StandingReply(
            is_known=True,
            health=summary.health,
            success_rate=summary.success_rate,
            is_dialable=entry.is_dialable,
            models=tuple(
                self._model_standing(node, state.offer) for state in entry.models.values()
            ),
        )

    def _model_standing(self, node: PeerId, offer: ModelOffer) -> ModelStanding:
        table = self.book.table(offer.manifest_digest)
        assert table is not None, "a listed model has a table"
        return model_standing(
            table,
            self._recent.of(offer.name, offer.manifest_digest),
            node,
            book=self.book,
            reputation=self.reputation,
            now_ms=self._clock.now_ms(),
        )

    def judge(self, lease: Lease, claim: Claim | None, observation: Observation) -> None:
        """Take a job's outcome into its node's reputation. Call it once for each lease."""
        node, client = lease.node, lease.client
        now_ms = self._clock.now_ms()
        entry = self.book.get(node)
        ratios = NO_RATIOS
        if claim is not None:
            ratios = claim.ratios(
                first_output_ms=observation.first_output_ms,
                total_ms=observation.total_ms,
                output_tokens=observation.delivered.output_tokens,
                rtt_ms=entry.rtt_ms if entry is not None else None,
            )
            if ratios.first is not None:
                self._first_outputs.note(node, lease.model_digest, ratios.first)
        stake_nano = charge_nano(lease.price, observation.delivered, Finish.COMPLETE)
        if observation.code is not None:
            stake_nano = lease.ceiling_nano
        weight = self._voices.weigh(node, client, at_stake_nano=stake_nano, now_ms=now_ms)
        # What a node says of other jobs there is no proof that it can run them.
        at_once = sum(len(state.leases) for state in entry.models.values()) if entry else 0
        source = Source(client, weight, observation.is_first_hand, at_once)
        self._judge_machine(lease, entry, observation, source)
        if observation.code is None or observation.blame is None:
            self._waits.on_success(client, node)
            self.reputation.record_success(node, source, now_ms=now_ms, ratios=ratios)
            return
        if observation.blame is Blame.REFUSAL or observation.code is Code.POISON_INPUT:
            # Also of an input that it says ended its worker: it could say so of every input.
            self._waits.on_refusal(
                client,
                node,
                now_ms,
                retry_after_ms=observation.retry_after_ms,
                jitter=self._rng.random(),
            )
        self.reputation.record_code(
            node,
            observation.code,
            observation.blame,
            source,
            now_ms=now_ms,
            retry_after_ms=observation.retry_after_ms,
            ratios=ratios,
        )

    def remember(
        self, node: PeerId, client: PeerId, *, paid_nano: int, is_first_hand: bool, at_ms: int
    ) -> None:
        """An answer that an earlier process saw. Call it in order of time, before any `judge`."""
        weight = self._voices.weigh(node, client, at_stake_nano=paid_nano, now_ms=at_ms)
        source = Source(client, weight, is_first_hand=is_first_hand)
        self.reputation.record_success(node, source, now_ms=at_ms)

    def note_unreached(self, node: PeerId, client: PeerId) -> None:
        """A client with a lease of this node says that it could not dial it."""
        self.unreached.note(node, client, now_ms=self._clock.now_ms())

    def lose(self, node: PeerId) -> None:
        """A node's control stream ended or fell silent: no jobs until it reports or offers anew."""
        now_ms = self._clock.now_ms()
        entry = self.book.get(node)
        if entry is not None and not entry.is_draining:
            self.reputation.record_loss(node, now_ms=now_ms)
            self.book.machines.on_loss(entry.machine, now_ms)
        self.book.detach(node, now_ms=now_ms)

    def _judge_machine(
        self, lease: Lease, entry: NodeEntry | None, observation: Observation, source: Source
    ) -> None:
        """What our own client saw of a node counts for its machine, too."""
        if entry is None or not observation.is_first_hand:
            return
        now_ms, machines = self._clock.now_ms(), self.book.machines
        if observation.code is None:
            machines.on_success(entry.machine, now_ms, weight=max(source.weight, 0.25))
        elif observation.blame is not Blame.FAILURE:
            machines.on_no_verdict(entry.machine)
        elif not self._had_a_record(lease, now_ms):
            machines.on_failure(entry.machine, now_ms, jitter=self._rng.random())

    def _had_a_record(self, lease: Lease, now_ms: int) -> bool:
        return self.reputation.had_a_record(lease.node, at_ms=lease.issued_at_ms, now_ms=now_ms)

    def _match(self, job: Job, *, limit: int, explain: bool = False) -> Match:
        return match(
            job,
            self.book,
            self.reputation,
            now_ms=self._clock.now_ms(),
            rng=self._rng,
            limit=limit,
            explain=explain,
        )

    def _summary(self, entry: NodeEntry) -> NodeSummary:
        now_ms = self._clock.now_ms()
        standing = self.reputation.standing(entry.node, now_ms=now_ms)
        health = "closed" if standing is None else _health(standing)
        return NodeSummary(
            node=entry.node,
            offer=entry.signed.raw,
            rtt_ms=entry.rtt_ms,
            attached=entry.is_attached,
            running=sum(state.running for state in entry.models.values()),
            queued=sum(state.queued for state in entry.models.values()),
            health=entry.suspension or health,
            success_rate=standing.success_rate if standing is not None else 1.0,
        )


def _health(standing: NodeStanding) -> str:
    is_closed = standing.breaker is BreakerState.CLOSED
    return UNSTEADY if is_closed and standing.is_unsteady else standing.breaker.value


def _within(job: Job, budget_nano: int | None) -> Job:
    """The same job with at most this cost."""
    if budget_nano is None:
        return job
    limit_nano = job.constraints.max_cost_nano
    lower_nano = budget_nano if limit_nano is None else min(limit_nano, budget_nano)
    return replace(job, constraints=replace(job.constraints, max_cost_nano=lower_nano))


def _over_budget(found: Match, budget_nano: int) -> RemoteProtocolError:
    least_nano = min(candidate.ceiling_nano for candidate in found.candidates)
    return RemoteProtocolError(
        f"the budget of this API key has {format_credits(budget_nano)} credits left for now; this "
        f"request may cost {format_credits(least_nano)} or more",
        code=Code.BUDGET_EXCEEDED,
    )


def _refusal(job: Job, found: Match) -> RemoteProtocolError:
    """Why nothing fits, with numbers, and what to do about it."""
    if Reason.UNKNOWN_MODEL in found.counts:
        return RemoteProtocolError(f"no node offers {job.model!r} now", code=Code.UNKNOWN_MODEL)
    decisive = max(found.alone, key=lambda reason: found.alone[reason], default=None)
    advice = _ADVICE.get(decisive, "") if decisive is not None else ""
    message = f"none of {found.considered} nodes with {job.model!r} fits: {summary(found)}"
    return RemoteProtocolError(
        f"{message}; {advice}" if advice else message,
        code=Code.NO_NODE_FITS,
        retry_after_ms=found.retry_after_ms,
    )

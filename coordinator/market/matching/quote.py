"""A match in the words of the wire, for `coordinator quote` and its `--explain`."""

from collections.abc import Iterator

from coordinator.market.matching.job import Candidate, Job, Match, Reason, Rejection, Why
from coordinator.market.offers import ModelState, NodeEntry, OfferBook
from protocol.money import format_credits
from protocol.offers import ModelOffer
from protocol.pricing import asked_prices
from protocol.services import QuoteCandidate, QuoteRejection, QuoteReply

_WHY_TEXT = {
    Why.ORDERED: "in the order you gave",
    Why.KEEPS_CACHE: "has run this conversation so far",
    Why.EXPLORED: "new here, and it is the turn of a new node",
    Why.BEST: "best score",
    Why.LESS_LOADED: "less loaded of two near-equals",
    Why.NEAR_EQUAL: "near-equal",
    Why.NEXT: "next by score",
}
_TIME_LIMITS = (Reason.LATENCY_ABOVE_MAX, Reason.DEADLINE_TOO_SOON)
_MS_PER_S = 1_000
# Close to certain; below it a person wants to know.
_SUCCESS_WORTH_SAYING = 0.95


def quote_reply(match: Match, job: Job, book: OfferBook, *, match_us: int) -> QuoteReply:
    """The whole answer. Without a candidate, the digest is empty and the ceiling zero."""
    best = match.candidates[0] if match.candidates else None
    return QuoteReply(
        model=job.model,
        model_digest=best.model.manifest_digest if best else "",
        ceiling_nano=best.ceiling_nano if best else 0,
        candidates=tuple(_candidate(candidate) for candidate in match.candidates),
        rejections=tuple(_rejection(rejection, job, book) for rejection in match.rejections),
        match_us=match_us,
    )


def summary(match: Match) -> str:
    """Why nothing fits, in one line for an error message: the most frequent reasons first."""
    parts = sorted(match.counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} ({count})" for reason, count in parts) or "no nodes"


def _candidate(candidate: Candidate) -> QuoteCandidate:
    offer, latency = candidate.offer.message, candidate.latency
    return QuoteCandidate(
        node=offer.node,
        cost_nano=candidate.cost_nano,
        latency_ms=round(latency.total_ms),
        rtt_ms=round(latency.rtt_ms, 2),
        queue_ms=round(latency.queue_ms),
        prefill_ms=round(latency.prefill_ms),
        decode_ms=round(latency.decode_ms),
        score=candidate.score,
        price=candidate.price,
        region=offer.region,
        isolation=offer.tier.value,
        reasons=tuple(_reasons_for(candidate)),
        load_ms=round(latency.load_ms),
    )


def _reasons_for(candidate: Candidate) -> Iterator[str]:
    yield _WHY_TEXT[candidate.why]
    if candidate.model.load_ms:
        yield f"cold: {_load_text(candidate.model)}"
    if candidate.is_over_limit:
        yield "expected to miss your time limit"
    if candidate.load:
        yield f"load {candidate.load:.0%}"
    if candidate.success < _SUCCESS_WORTH_SAYING:
        yield f"success {candidate.success:.0%}"


def _load_text(model: ModelOffer) -> str:
    return f"it has to be loaded first, which takes {model.load_ms / _MS_PER_S:.1f} s"


def _rejection(rejection: Rejection, job: Job, book: OfferBook) -> QuoteRejection:
    entry = book.get(rejection.node)
    model = entry.model(job.model) if entry else None
    state = entry.models[model.manifest_digest] if entry and model else None
    return QuoteRejection(
        rejection.node,
        tuple(
            f"{reason}: {detail}" if (detail := _detail(reason, entry, state, job)) else reason
            for reason in rejection.reasons
        ),
    )


def _detail(reason: Reason, entry: NodeEntry | None, state: ModelState | None, job: Job) -> str:
    """The node's own figure, where it helps to see by how much it fails."""
    if entry is None or state is None:
        return ""
    model = state.offer
    if reason is Reason.PRICE_ABOVE_MAX:
        asked = ", ".join(
            f"{format_credits(nano)} {position.label}"
            for position, nano in asked_prices(model.price)
        )
        return f"asks {asked}"
    if reason in _TIME_LIMITS:
        return f"cold: {_load_text(model)}" if model.load_ms else ""
    texts = {
        Reason.QUANTIZATION: model.quantization,
        Reason.REGION: entry.offer.region or "not stated",
        Reason.ISOLATION_TOO_WEAK: entry.offer.tier.value,
        Reason.FEATURES: "lacks "
        + ", ".join(sorted(set(job.constraints.features) - set(model.features))),
        Reason.WRONG_TASK: model.task.value,
        Reason.CONTEXT_TOO_SHORT: f"{model.context_tokens} tokens",
        Reason.BUSY: f"{state.busy} jobs for {model.slots} slots and {model.queue_max} places",
        Reason.KEY_CONFLICT: entry.suspension,
    }
    return texts.get(reason, "")

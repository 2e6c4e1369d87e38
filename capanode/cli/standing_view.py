"""How the markets see this node, in words: whether buyers reach it, and why jobs went elsewhere.
Pure; the parts of the status come as JSON has them, and an older node's may lack them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protocol.programs.output import health_word, short

Plain = Mapping[str, Any]

_REACH_WORDS = {
    "unknown": "not known: no coordinator has tried",
    "direct": "buyers dial it directly",
    "relayed": "only through relays",
    "unreachable": "NO: nothing can dial it",
}
_OUTCOME_WORDS = {
    "reached": "works",
    "refused": "nothing answers",
    "timed_out": "no answer in time",
    "other_peer": "another node answers",
    "forbidden": "not dialled: a private place",
    "unproven": "not dialled",
}
# What keeps a node from a job, as its owner sees it.
_REASON_WORDS = {
    "not_in_only": "the buyer named other nodes",
    "not_in_order": "the buyer named other nodes",
    "ignored": "the buyer wants none of this node",
    "already_tried": "it was tried before",
    "price_above_max": "dearer than the buyer's most",
    "cost_above_max": "dearer than the buyer's most",
    "quantization": "other weights were wanted",
    "region": "another region was wanted",
    "isolation_too_weak": "a stronger sandbox was wanted",
    "data_collection": "a node that keeps no prompts was wanted",
    "features": "something was wanted that this model cannot do",
    "latency_above_max": "slower than the buyer's most",
    "deadline_too_soon": "too slow for the deadline",
    "context_too_short": "a longer context was wanted",
    "expired": "its offer had expired",
    "unreachable": "it could not be reached",
    "not_dialable": "buyers cannot dial it",
    "draining": "it was paused or about to stop",
    "model_unavailable": "the model was not running",
    "key_conflict": "another node runs with its key",
    "busy": "it was full",
    "machine_unproven": "new nodes get few jobs at first",
    "breaker_open": "it failed lately, and rests",
    "cooling_down": "it refused lately, and rests",
}


def reach_text(plain: Plain) -> str:
    """Empty for a node that does not say."""
    reach = plain.get("reach")
    if not reach:
        return ""
    words = [_REACH_WORDS.get(reach["state"], reach["state"])]
    if reach["observed_hosts"]:
        words.append(f"seen at {', '.join(reach['observed_hosts'])}")
    if reach["relays"]:
        words.append(f"{len(reach['relays'])} relays")
    if reach["failed_buyers"]:
        words.append(f"{reach['failed_buyers']} buyers could not dial it lately")
    return "; ".join(words)


def tried_rows(plain: Plain) -> Iterator[tuple[str, ...]]:
    """Market, address, and what its dial came to."""
    for tried in (plain.get("reach") or {}).get("tried", ()):
        outcome = _OUTCOME_WORDS.get(tried["outcome"], tried["outcome"])
        yield short(tried["coordinator"]), tried["address"], outcome


def standing_rows(
    coordinators: Sequence[Plain], names: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """Market, how it sees the node, model, its last jobs, how many came here, why others did not.
    `names` are those of the models, by digest."""
    for line in coordinators:
        standing = line.get("standing")
        if not standing:
            continue
        market = short(line["peer_id"])
        if not standing["is_known"]:
            yield market, "does not know it", "-", "-", "-", "no offer of it is listed there"
            continue
        health = health_word(standing["health"])
        for model in standing["models"]:
            name = names.get(model["manifest_digest"], model["manifest_digest"][:12])
            why = "; ".join(_why(model)) or "-"
            yield market, health, name, str(model["jobs"]), str(model["chosen"]), why


def _why(model: Plain) -> Iterator[str]:
    """The most frequent first."""
    reasons = sorted(model["reasons"], key=lambda each: -each["count"])
    for reason in reasons:
        words = _REASON_WORDS.get(reason["reason"], reason["reason"].replace("_", " "))
        yield f"{words} ({reason['count']})"
    if not model["outbid"]:
        return
    by = [
        f"{model[key]} % {word}"
        for key, word in (("dearer_percent", "dearer"), ("slower_percent", "slower"))
        if model[key]
    ]
    yield f"others were better ({model['outbid']}): {' and '.join(by) or 'nearly equal'}"

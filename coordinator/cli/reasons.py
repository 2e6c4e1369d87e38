"""A coordinator's reasons for not choosing a node, in words. One of a later version is shown as it
came, with its underscores gone."""

_WORDS = {
    "not_in_only": "is not among --only",
    "not_in_order": "is not in --order",
    "ignored": "you said --ignore",
    "already_tried": "was tried already",
    "price_above_max": "is dearer than your --max-price",
    "cost_above_max": "would cost more than your --max-cost",
    "quantization": "has other weights",
    "region": "stands elsewhere",
    "isolation_too_weak": "has a weaker sandbox than you ask for",
    "data_collection": "may keep what you send",
    "features": "cannot do what you ask for",
    "latency_above_max": "would be slower than your --max-latency-ms",
    "deadline_too_soon": "would not be done in time",
    "not_offered": "does not offer the model",
    "wrong_task": "offers the model for another task",
    "context_too_short": "has a shorter context",
    "expired": "has not been heard of lately",
    "unreachable": "cannot be reached",
    "not_dialable": "cannot be dialled where it says it listens",
    "draining": "is about to stop",
    "model_unavailable": "does not serve the model at the moment",
    "key_conflict": "runs twice with one key",
    "busy": "is full",
    "machine_unproven": "is new here, and has as many jobs as new nodes get",
    "breaker_open": "failed lately, and rests",
    "cooling_down": "refused lately, and rests",
}


def reason_words(reason: str) -> str:
    """`reason` is `code` or `code: detail`."""
    code, colon, detail = reason.partition(": ")
    words = _WORDS.get(code, code.replace("_", " "))
    return f"{words} ({detail})" if colon else words

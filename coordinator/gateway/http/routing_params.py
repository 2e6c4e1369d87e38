"""OpenRouter's `provider` object, and its suffixes of model names, as the market's constraints.

Names and meanings are OpenRouter's where it has them; `region`, `isolation`, `max_cost`,
`max_latency`, `session`, `hedge` and `continuation` are ours. What cannot be honoured strictly is
refused, except for what OpenRouter itself calls a preference; so is a name that we do not know.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from coordinator.buyer.spec import Continuation
from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.strict_json import Fields, parse_object
from coordinator.gateway.orders import Routing
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.limits import JOB_DURATION_MAX_MS, LIST_ITEMS_MAX, NAME_BYTES_MAX, NAME_CHARS_MAX
from protocol.messages import (
    NO_CONSTRAINTS,
    Constraints,
    DataCollection,
    IsolationTier,
    Objective,
    PriceCap,
)
from protocol.money import AMOUNT_NANO_MAX, NANO_PER_CREDIT, parse_credits
from protocol.pricing import PRICE_POSITIONS

# No job runs longer, so a higher limit means nothing.
LATENCY_S_MAX = JOB_DURATION_MAX_MS / 1_000
_CREDITS_MAX = AMOUNT_NANO_MAX // NANO_PER_CREDIT

_SORTS = {
    "price": Objective.PRICE,
    "throughput": Objective.THROUGHPUT,
    "latency": Objective.LATENCY,
    "balanced": Objective.BALANCED,
}
_SUFFIXES = {":nitro": Objective.THROUGHPUT, ":floor": Objective.PRICE}
_COLLECTION = {choice.value: choice for choice in DataCollection}
_PRICES = {position.cap_name: position.cap_field for position in PRICE_POSITIONS}
_TIERS = {tier.value: tier for tier in IsolationTier}
# Of several percentiles the median is the one that an expectation can be held against.
_PERCENTILES = ("p50", "p75", "p90", "p99")
_CONTINUATIONS = {choice.value: choice for choice in Continuation}
_TOKENS_S_MAX = 1_000_000

_KNOWN = (
    "order",
    "only",
    "ignore",
    "allow_fallbacks",
    "require_parameters",
    "data_collection",
    "zdr",
    "quantizations",
    "sort",
    "max_price",
    "max_cost",
    "max_latency",
    "preferred_max_latency",
    "preferred_min_throughput",
    "region",
    "isolation",
    "session",
    "hedge",
    "continuation",
    "enforce_distillable_text",
)

# The `provider` object as a header, for clients whose bodies others write.
PROVIDER_HEADER = "x-capacloud-provider"
PROVIDER_CHARS_MAX = 4_096
# A name of the user's own, as in a cookie.
SESSION_CHARS_MAX = 256
# Of one request. Each is looked up before anything is bought.
MODELS_MAX = 8
# Names that OpenRouter and OpenAI have for it.
_SESSION_FIELDS = ("session_id", "prompt_cache_key")


def read_routing(request: Fields) -> Routing:
    """The model, others to take its place, and the `provider` object beside them. Raises ApiError
    (400)."""
    names = request.texts("models", items_max=MODELS_MAX, chars_max=NAME_CHARS_MAX)
    if request.raw("model") is not None or not names:
        names = (request.text("model", chars_max=NAME_CHARS_MAX), *names)
    first, *others = (_read_routing(request, name) for name in dict.fromkeys(names))
    return replace(first, fallbacks=tuple(others)) if others else first


def _read_routing(request: Fields, model: str) -> Routing:
    objective = Objective.BALANCED
    for suffix, wanted in _SUFFIXES.items():
        if model.endswith(suffix) and model != suffix:
            model, objective = model.removesuffix(suffix), wanted
    session = _read_session(request, _SESSION_FIELDS)
    provider = request.fields("provider")
    if provider is None:
        return Routing(model, objective, NO_CONSTRAINTS, session=session)
    _refuse_unknown(provider, _KNOWN)
    if provider.flag("enforce_distillable_text"):
        raise unsupported(
            "provider.enforce_distillable_text cannot be promised: offers do not state it",
            "provider.enforce_distillable_text",
        )
    # What changes an answer is honoured by the node or refused, whether this asks for it or not.
    provider.flag("require_parameters")
    return Routing(
        model,
        _read_sort(provider) or objective,
        _read_constraints(provider),
        session=_read_session(provider, ("session",)) or session,
        hedge=provider.flag("hedge") or False,
        continuation=provider.choice("continuation", _CONTINUATIONS) or Continuation.CONTINUE,
    )


def routed(fields: Fields, request: Request) -> Fields:
    """The fields with what the API key and headers say of routing. Raises ApiError (400)."""
    session = request.header(b"x-session-id")
    key = request.caller.provider if request.caller is not None else {}
    named = {} if session is None else {"session": session}
    stated = read_provider_header(request.header(PROVIDER_HEADER.encode()))
    return with_provider(fields, key, named, stated)


def with_provider(request: Fields, *layers: Mapping[str, Any]) -> Fields:
    """The request with what `layers` say of its `provider`, the later ones first; what the request
    says itself goes before them."""
    stated = request.raw("provider")
    if not any(layers) or not (stated is None or isinstance(stated, dict)):
        return request
    merged: dict[str, Any] = {}
    for layer in (*layers, stated or {}):
        merged |= {name: value for name, value in layer.items() if value is not None}
    return request.with_value("provider", merged)


def read_provider_header(text: str | None) -> Mapping[str, Any]:
    """The object of an `x-capacloud-provider` header. Raises ApiError (400)."""
    if text is None:
        return {}
    if len(text) > PROVIDER_CHARS_MAX:
        raise _bad_header(f"has at most {PROVIDER_CHARS_MAX} characters")
    try:
        return parse_object(text.encode("latin-1"))
    except ApiError as error:
        raise _bad_header(f"is a JSON object: {error}") from None
    except UnicodeEncodeError:
        raise _bad_header("has ASCII only: write other characters as \\u escapes") from None


def _bad_header(rule: str) -> ApiError:
    return invalid(f"{PROVIDER_HEADER} {rule}", PROVIDER_HEADER)


def _refuse_unknown(fields: Fields, known: Collection[str]) -> None:
    """A wish that is not kept would be an answer that was not wanted, or a bill."""
    for name in fields.unknown(known):
        path = fields.path(name)
        raise unsupported(f"{path} is not known here: use {', '.join(known)}", path)


def _read_session(fields: Fields, names: Sequence[str]) -> str:
    for name in names:
        if fields.raw(name) is not None:
            return fields.text(name, chars_max=SESSION_CHARS_MAX)
    return ""


def _read_constraints(provider: Fields) -> Constraints:
    fallbacks = provider.flag("allow_fallbacks")
    collection = provider.choice("data_collection", _COLLECTION) or DataCollection.ALLOW
    if provider.flag("zdr"):
        collection = DataCollection.DENY
    return Constraints(
        max_price=_read_max_price(provider),
        max_cost_nano=_read_credits(provider, "max_cost"),
        max_latency_ms=_read_latency_ms(provider, "max_latency"),
        order=_read_nodes(provider, "order"),
        only=_read_nodes(provider, "only"),
        ignore=_read_nodes(provider, "ignore"),
        allow_fallbacks=True if fallbacks is None else fallbacks,
        quantizations=_read_names(provider, "quantizations"),
        regions=_read_names(provider, "region"),
        isolation=provider.choice("isolation", _TIERS) or NO_CONSTRAINTS.isolation,
        data_collection=collection,
        preferred_latency_ms=_read_latency_ms(provider, "preferred_max_latency"),
        preferred_tps=_read_throughput(provider),
    )


def _read_sort(provider: Fields) -> Objective | None:
    """`sort` is a word, or an object with the word in `by`. With a single model, all partitions are
    the same."""
    if not isinstance(provider.raw("sort"), dict):
        return provider.choice("sort", _SORTS)
    nested = provider.fields("sort")
    assert nested is not None, "it is an object"
    _refuse_unknown(nested, ("by", "partition"))
    nested.choice("partition", dict.fromkeys(("model", "none")))
    return nested.choice("by", _SORTS)


def _read_max_price(provider: Fields) -> PriceCap:
    """Credits per million tokens, per image, per request; as numbers or decimal texts."""
    prices = provider.fields("max_price")
    if prices is None:
        return NO_CONSTRAINTS.max_price
    _refuse_unknown(prices, _PRICES)
    return PriceCap(**{field: _read_credits(prices, name) for name, field in _PRICES.items()})


def _read_credits(fields: Fields, name: str) -> int | None:
    value, path = fields.raw(name), fields.path(name)
    if value is None:
        return None
    if type(value) is str:
        text = value
    else:
        number = fields.number(name, low=0, high=_CREDITS_MAX)
        # The shortest decimal that means this float is what was written: 0.1, not 0.1000…0555.
        text = f"{Decimal(repr(number)):f}"
    try:
        return parse_credits(text)
    except ValueError:
        raise invalid(f"{path} is an amount of credits with at most nine decimals", path) from None


def _read_latency_ms(provider: Fields, name: str) -> int | None:
    """Seconds, or seconds per percentile."""
    latency_s = _read_figure(provider, name, high=LATENCY_S_MAX)
    # No answer takes no time: zero would be no limit to a matcher that rounds.
    return None if latency_s is None else max(1, round(1_000 * latency_s))


def _read_throughput(provider: Fields) -> int | None:
    """Output tokens per second, or that per percentile."""
    tokens_s = _read_figure(provider, "preferred_min_throughput", high=_TOKENS_S_MAX)
    return None if tokens_s is None else round(tokens_s)


def _read_figure(provider: Fields, name: str, *, high: float) -> float | None:
    """A number, or the first of several percentiles that is given."""
    if not isinstance(provider.raw(name), dict):
        return provider.number(name, low=0, high=high)
    nested = provider.fields(name)
    assert nested is not None, "it is an object"
    _refuse_unknown(nested, _PERCENTILES)
    found = (nested.number(key, low=0, high=high) for key in _PERCENTILES)
    return next((figure for figure in list(found) if figure is not None), None)


def _read_names(provider: Fields, name: str) -> tuple[str, ...]:
    texts = provider.texts(name, items_max=LIST_ITEMS_MAX, chars_max=NAME_CHARS_MAX)
    for number, text in enumerate(texts):
        if len(text.encode()) > NAME_BYTES_MAX:
            path = f"{provider.path(name)}[{number}]"
            raise invalid(f"{path} has more than {NAME_BYTES_MAX} bytes", path)
    return texts


def _read_nodes(provider: Fields, name: str) -> tuple[PeerId, ...]:
    texts = _read_names(provider, name)
    try:
        return tuple(map(parse_peer_id, texts))
    except RemoteProtocolError as error:
        raise _not_a_node(provider.path(name), error) from None


def _not_a_node(path: str, error: RemoteProtocolError) -> ApiError:
    return invalid(f"{path} lists node ids, such as x-capacloud-node names one: {error}", path)

"""OpenRouter's `provider` object, and its suffixes of model names, as the market's constraints.

Names and meanings are OpenRouter's where it has them; `region`, `isolation`, `max_cost` are ours.
What cannot be honoured strictly is refused, except for what OpenRouter itself calls a preference.
"""

from decimal import Decimal

from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.strict_json import Fields
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


def read_routing(request: Fields) -> Routing:
    """The model, and the `provider` object beside it. Raises ApiError (400)."""
    model = request.text("model", chars_max=NAME_CHARS_MAX)
    objective = Objective.BALANCED
    for suffix, wanted in _SUFFIXES.items():
        if model.endswith(suffix) and model != suffix:
            model, objective = model.removesuffix(suffix), wanted
    provider = request.fields("provider")
    if provider is None:
        return Routing(model, objective, NO_CONSTRAINTS)
    return Routing(model, _read_sort(provider) or objective, _read_constraints(provider))


def _read_constraints(provider: Fields) -> Constraints:
    fallbacks = provider.flag("allow_fallbacks")
    collection = provider.choice("data_collection", _COLLECTION) or DataCollection.ALLOW
    if provider.flag("zdr"):
        collection = DataCollection.DENY
    return Constraints(
        max_price=_read_max_price(provider),
        max_cost_nano=_read_credits(provider, "max_cost"),
        max_latency_ms=_read_max_latency_ms(provider),
        order=_read_nodes(provider, "order"),
        only=_read_nodes(provider, "only"),
        ignore=_read_nodes(provider, "ignore"),
        allow_fallbacks=True if fallbacks is None else fallbacks,
        quantizations=_read_names(provider, "quantizations"),
        regions=_read_names(provider, "region"),
        isolation=provider.choice("isolation", _TIERS) or NO_CONSTRAINTS.isolation,
        data_collection=collection,
    )


def _read_sort(provider: Fields) -> Objective | None:
    """`sort` is a word, or an object with the word in `by`."""
    if isinstance(provider.raw("sort"), dict):
        nested = provider.fields("sort")
        return nested.choice("by", _SORTS) if nested is not None else None
    return provider.choice("sort", _SORTS)


def _read_max_price(provider: Fields) -> PriceCap:
    """Credits per million tokens, per image, per request; as numbers or decimal texts."""
    prices = provider.fields("max_price")
    if prices is None:
        return NO_CONSTRAINTS.max_price
    for name in prices.unknown(_PRICES):
        path = prices.path(name)
        # A cap that is not kept would be a bill that was not expected.
        raise unsupported(f"{path} is no price here: use {', '.join(_PRICES)}", path)
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


def _read_max_latency_ms(provider: Fields) -> int | None:
    """Seconds, or seconds per percentile."""
    for name in ("max_latency", "preferred_max_latency"):
        nested = provider.fields(name) if isinstance(provider.raw(name), dict) else None
        fields, keys = (provider, (name,)) if nested is None else (nested, _PERCENTILES)
        for key in keys:
            latency_s = fields.number(key, low=0, high=LATENCY_S_MAX)
            if latency_s is not None:
                return round(1_000 * latency_s)
    return None


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

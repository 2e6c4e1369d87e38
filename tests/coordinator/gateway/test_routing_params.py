"""OpenRouter's vocabulary, in the market's terms."""

import pytest

from coordinator.buyer.spec import Continuation
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.routing_params import (
    read_provider_header,
    read_routing,
    with_provider,
)
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.orders import Routing
from protocol.messages import NO_CONSTRAINTS, DataCollection, IsolationTier, Objective, PriceCap
from tests.coordinator.gateway.fake_market import CLIENT_KEY, NODE_KEY

NODE, OTHER = NODE_KEY.peer_id, CLIENT_KEY.peer_id


def read(provider: object = None, model: object = "m") -> Routing:
    return read_routing(Fields({"model": model, "provider": provider}))


def refused(provider: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(provider)
    assert caught.value.problem.status == 400
    return caught.value


def test_without_a_provider_object_anything_goes() -> None:
    assert read() == Routing("m", Objective.BALANCED, NO_CONSTRAINTS)


def test_everything_at_once() -> None:
    routing = read(
        {
            "order": [NODE, OTHER],
            "only": NODE,
            "ignore": [OTHER],
            "allow_fallbacks": False,
            "data_collection": "deny",
            "quantizations": ["int4", "bf16"],
            "sort": "throughput",
            "max_price": {"prompt": 0.5, "completion": "1.25", "image": 1e-6, "request": 0},
            "max_cost": 0.1,
            "max_latency": 1.5,
            "region": ["eu", "us"],
            "isolation": "bwrap",
            "require_parameters": True,
            "preferred_min_throughput": {"p50": 50, "p90": 20},
            "preferred_max_latency": 0.5,
            "enforce_distillable_text": False,
            "session": "s-1",
            "hedge": True,
            "continuation": "off",
        }
    )
    constraints = routing.constraints
    assert routing.objective is Objective.THROUGHPUT
    assert constraints.order == (NODE, OTHER)
    assert constraints.only == (NODE,)
    assert constraints.ignore == (OTHER,)
    assert constraints.allow_fallbacks is False
    assert constraints.data_collection is DataCollection.DENY
    assert constraints.quantizations == ("int4", "bf16")
    assert constraints.max_price == PriceCap(500_000_000, 1_250_000_000, 1_000, 0)
    assert constraints.max_cost_nano == 100_000_000
    assert constraints.max_latency_ms == 1_500
    assert constraints.regions == ("eu", "us")
    assert constraints.isolation is IsolationTier.BWRAP
    assert constraints.preferred_tps == 50
    assert constraints.preferred_latency_ms == 500
    assert routing.session == "s-1"
    assert routing.hedge
    assert routing.continuation is Continuation.OFF


@pytest.mark.parametrize(
    ("provider", "objective"),
    [
        ({"sort": "price"}, Objective.PRICE),
        ({"sort": "latency"}, Objective.LATENCY),
        ({"sort": {"by": "price", "partition": "none"}}, Objective.PRICE),
        ({"sort": None}, Objective.BALANCED),
    ],
)
def test_sort_is_the_objective(provider: object, objective: Objective) -> None:
    assert read(provider).objective is objective


def test_suffixes_of_the_model_are_shortcuts() -> None:
    assert read(model="m:nitro") == Routing("m", Objective.THROUGHPUT, NO_CONSTRAINTS)
    assert read(model="m:floor").objective is Objective.PRICE
    assert read({"sort": "latency"}, "m:floor").objective is Objective.LATENCY
    assert read(model="llama:8b").model == "llama:8b"


def test_zero_data_retention_means_deny() -> None:
    assert read({"zdr": True}).constraints.data_collection is DataCollection.DENY


def test_a_latency_by_percentile_counts_its_median() -> None:
    assert read({"max_latency": {"p50": 1, "p99": 4}}).constraints.max_latency_ms == 1_000
    preferred = read({"preferred_max_latency": {"p90": 2}}).constraints
    assert preferred.preferred_latency_ms == 2_000
    assert preferred.max_latency_ms is None


def test_a_session_has_several_names() -> None:
    named = Fields({"model": "m", "session_id": "a", "provider": {"sort": "price"}})
    assert read_routing(named).session == "a"
    assert read_routing(Fields({"model": "m", "prompt_cache_key": "b"})).session == "b"
    own = Fields({"model": "m", "session_id": "a", "provider": {"session": "c"}})
    assert read_routing(own).session == "c"


def test_the_request_goes_before_its_header_and_that_before_the_key() -> None:
    key = {"sort": "price", "zdr": True, "region": "eu"}
    stated = read_provider_header('{"sort": "latency", "region": "us"}')
    fields = with_provider(Fields({"model": "m", "provider": {"region": "asia"}}), key, stated)
    routing = read_routing(fields)
    assert routing.objective is Objective.LATENCY
    assert routing.constraints.regions == ("asia",)
    assert routing.constraints.data_collection is DataCollection.DENY
    assert read_routing(with_provider(Fields({"model": "m"}), key)).objective is Objective.PRICE


@pytest.mark.parametrize("text", ["", "[]", "{", "price", '{"a":' + " " * 5_000 + "1}"])
def test_a_header_that_is_no_object_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(ApiError, match="x-capacloud-provider") as caught:
        read_provider_header(text)
    assert caught.value.problem.status == 400


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ("fast", "provider"),
        ({"something_new": {"x": 1}}, "provider.something_new"),
        ({"max_price": {"output": 0}}, "provider.max_price.output"),
        ({"sort": {"by": "price", "partiton": "none"}}, "provider.sort.partiton"),
        ({"sort": {"by": "price", "partition": "all"}}, "provider.sort.partition"),
        ({"max_latency": {"p95": 1}}, "provider.max_latency.p95"),
        ({"preferred_min_throughput": "fast"}, "provider.preferred_min_throughput"),
        ({"enforce_distillable_text": True}, "provider.enforce_distillable_text"),
        ({"require_parameters": "yes"}, "provider.require_parameters"),
        ({"continuation": "maybe"}, "provider.continuation"),
        ({"session": ""}, "provider.session"),
        ({"hedge": 1}, "provider.hedge"),
        ({"order": ["openai"]}, "provider.order"),
        ({"order": 5}, "provider.order"),
        ({"only": [NODE] * 65}, "provider.only"),
        ({"ignore": [NODE, ""]}, "provider.ignore[1]"),
        ({"allow_fallbacks": "yes"}, "provider.allow_fallbacks"),
        ({"data_collection": "maybe"}, "provider.data_collection"),
        ({"quantizations": [4]}, "provider.quantizations[0]"),
        ({"sort": "random"}, "provider.sort"),
        ({"sort": {"by": "random"}}, "provider.sort.by"),
        ({"max_price": 1}, "provider.max_price"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt"),
        ({"max_price": {"prompt": "1.0000000001"}}, "provider.max_price.prompt"),
        ({"max_price": {"prompt": 1e300}}, "provider.max_price.prompt"),
        ({"max_price": {"prompt": True}}, "provider.max_price.prompt"),
        ({"max_latency": -1}, "provider.max_latency"),
        ({"max_latency": {"p50": "x"}}, "provider.max_latency.p50"),
        ({"isolation": "docker"}, "provider.isolation"),
        ({"region": ["eu", 1]}, "provider.region[1]"),
        ({"region": ["eu", "é" * 65]}, "provider.region[1]"),
        ({"quantizations": ["🙂" * 33]}, "provider.quantizations[0]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(provider: object, param: str) -> None:
    assert refused(provider).problem.param == param


@pytest.mark.parametrize("model", [None, "", 5, "x" * 129])
def test_a_model_is_named(model: object) -> None:
    with pytest.raises(ApiError) as caught:
        read(model=model)
    assert caught.value.problem.param == "model"

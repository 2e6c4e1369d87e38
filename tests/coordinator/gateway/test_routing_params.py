"""OpenRouter's vocabulary, in the market's terms."""

import pytest

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.routing_params import read_routing
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
            "something_new": {"x": 1},
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
    assert read({"preferred_max_latency": {"p90": 2}}).constraints.max_latency_ms == 2_000


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ("fast", "provider"),
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

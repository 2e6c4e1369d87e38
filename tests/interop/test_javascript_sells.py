"""A node in JavaScript, made from docs/protocol.md and stock libp2p, sells in our market."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pytest

from sim.demo import CHAT_MODEL
from tests.integration.conftest import RunningMarket
from tests.interop.conftest import FIXED_MODEL, earned, wait
from tests.interop.javascript import JavascriptPeer, PeerError

pytestmark = [pytest.mark.slow, pytest.mark.models]

MakeSeller = Callable[[], AbstractContextManager[JavascriptPeer]]
# It isolates nothing, and its buyers say that they do not mind.
ANYWHERE = {"isolation": "none"}


@pytest.fixture(scope="module")
def seller(make_seller: MakeSeller) -> Iterator[JavascriptPeer]:
    """A node that behaves. It has no account."""
    with make_seller() as peer:
        yield peer


@pytest.fixture
def culprit(make_seller: MakeSeller) -> Iterator[JavascriptPeer]:
    """A node for one test, whose name may suffer."""
    with make_seller() as peer:
        yield peer


def words(count: int) -> str:
    """What such a node answers: its token n is the text "n "."""
    return "".join(f"{n} " for n in range(count))


def count_up(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "messages": [{"role": "user", "content": "Count, please."}]}


def cost(input_tokens: int, output_tokens: int) -> int:
    return 10 * input_tokens + 20 * output_tokens


def purchase(
    buyer: JavascriptPeer, node: JavascriptPeer, tokens: int, **more: Any
) -> list[dict[str, Any]]:
    """One text, first from this node, then from `then`."""
    request = {"model": FIXED_MODEL} | more.pop("request", {})
    nodes = [node.id, *more.pop("then", [])]
    request["constraints"] = ANYWHERE | {"order": nodes, "only": nodes}
    jobs: list[dict[str, Any]] = buyer.call(
        "purchase", input=count_up(tokens), request=request, **more
    )
    return jobs


def outcome(job: Mapping[str, Any]) -> tuple[str, int]:
    """What the market made of a receipt: the state, and what was charged."""
    settled = job["settled"]
    return settled["state"], settled["amount_nano"]


def stream(market: RunningMarket, *nodes: str, **body: Any) -> tuple[str, str, Any]:
    """Who of these nodes, in this order, answered through our gateway; the text; the usage."""
    text, usage = "", None
    asked = {"stream": True, "stream_options": {"include_usage": True}} | body
    asked["provider"] = ANYWHERE | {"order": nodes, "only": nodes}
    with (
        market.client() as client,
        client.stream("POST", "/v1/chat/completions", json=asked) as response,
    ):
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                text += "".join(c["delta"].get("content") or "" for c in event["choices"])
                usage = event.get("usage") or usage
    return response.headers["x-capacloud-node"], text, usage


def buy_and_hang_up(buyer: JavascriptPeer, seller: JavascriptPeer) -> dict[str, Any]:
    """A job of six tokens whose client leaves without its receipt; the node has handed that in."""
    before = len(seller.call("handed"))
    (job,) = purchase(buyer, seller, 6, behaviour={"hangUpAtReceipt": True})
    assert job["agrees"] is None
    (alone,) = wait(lambda: seller.call("handed")[before:], lambda handed: handed)
    assert alone["accepted"] is None
    assert (alone["state"], alone["amount_nano"]) == ("pending", cost(2, 6))
    return job


def test_both_sides_sign_for_a_long_text_window_by_window(
    market: RunningMarket, buyer: JavascriptPeer, seller: JavascriptPeer
) -> None:
    (job,) = purchase(buyer, seller, 100)
    assert job["text"] == words(100)
    assert job["agrees"] is True
    windows = 100 // job["lease"]["window_tokens"]
    assert job["signed_link"] == job["node_link"] == 1 + windows
    # The last of them may cross the receipt.
    assert windows - 1 <= job["receipt"]["countersigned"]["index"] <= 1 + windows
    assert outcome(job) == ("settled", cost(2, 100))
    # What is paid to the node, after the market's fee.
    assert 0 < job["settled"]["node_nano"] < cost(2, 100)
    assert earned(market, seller.id) == cost(2, 100) * 95 // 100
    handed = wait(lambda: seller.call("handed"), lambda handed: handed)
    assert (handed[-1]["state"], handed[-1]["accepted"]) == ("settled", True)


def test_our_gateway_streams_an_answer_of_this_node(
    market: RunningMarket, seller: JavascriptPeer
) -> None:
    node, text, usage = stream(market, seller.id, model=FIXED_MODEL, **count_up(40))
    assert (node, text) == (seller.id, words(40))
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 40)
    counted = wait(lambda: seller.call("handed")[-1], lambda last: last["charged"] == cost(2, 40))
    assert (counted["state"], counted["accepted"]) == ("settled", True)


def test_a_load_report_names_the_leases_that_were_opened(
    buyer: JavascriptPeer, seller: JavascriptPeer
) -> None:
    (job,) = purchase(buyer, seller, 1)
    lease_id = job["lease"]["lease_id"]
    wait(lambda: seller.call("told"), lambda told: lease_id in told)


def test_a_receipt_without_the_clients_word_waits_and_no_other_takes_its_place(
    buyer: JavascriptPeer, seller: JavascriptPeer
) -> None:
    buy_and_hang_up(buyer, seller)
    with pytest.raises(PeerError, match="receipt_mismatch"):
        seller.call("hand_in_other")
    assert outcome({"settled": buyer.call("settle")}) == ("settled", cost(2, 6))


def test_a_delivery_pays_the_receipt_that_waits_for_its_client(
    market: RunningMarket, buyer: JavascriptPeer, seller: JavascriptPeer
) -> None:
    """The client never saw the receipt, and signs for what it counted."""
    before = earned(market, seller.id)
    job = buy_and_hang_up(buyer, seller)
    fewer = job["counted"] | {"output_tokens": 5}
    assert buyer.call("deliver", units=fewer) == {}
    assert earned(market, seller.id) == before + cost(2, 5) * 95 // 100
    with pytest.raises(PeerError, match="expired"):
        buyer.call("deliver", units=job["counted"])


def test_a_node_that_bills_more_than_it_sent_is_paid_for_what_came(
    buyer: JavascriptPeer, culprit: JavascriptPeer
) -> None:
    culprit.call("behave", billBeside=1)
    units = {"input_tokens": 9, "output_tokens": 30}
    (job,) = purchase(buyer, culprit, 20, request={"units_max": units})
    assert job["receipt"]["units"]["output_tokens"] == 21
    assert job["agrees"] is False
    assert outcome(job) == ("disputed", cost(2, 20))


def test_a_text_that_breaks_goes_on_at_another_node_as_the_next_part(
    buyer: JavascriptPeer, culprit: JavascriptPeer, our_node: str
) -> None:
    culprit.call("behave", breakAfterTokens=5)
    request = {"model": CHAT_MODEL}
    first, second = purchase(buyer, culprit, 8, request=request, then=[our_node])
    assert (first["node"], first["code"], first["text"]) == (culprit.id, "worker_crashed", words(5))
    assert outcome(first) == ("settled", cost(2, 5))
    assert (second["node"], second["code"]) == (our_node, None)
    assert second["job_id"] == first["job_id"]
    assert second["receipt"]["prefix_tokens"] == 5
    assert len(second["token_ids"]) <= 3
    assert second["settled"]["state"] == "settled"


def test_a_client_goes_on_elsewhere_when_a_node_dies(
    buyer: JavascriptPeer, make_seller: MakeSeller, our_node: str
) -> None:
    request = {"model": CHAT_MODEL}
    with make_seller() as doomed:
        doomed.call("behave", exitAfterTokens=5)
        first, second = purchase(buyer, doomed, 8, request=request, then=[our_node])
        assert (first["code"], first["text"]) == ("node_lost", words(5))
        assert first["receipt"] is None
        assert second["receipt"]["prefix_tokens"] == 5
        assert second["settled"]["state"] == "settled"
        # The second lease was asked for with the client's word on the first, which stands.
        assert buyer.call("deliver", units=first["counted"]) == {}
        with pytest.raises(PeerError, match="already_exists"):
            buyer.call("deliver", units=first["counted"] | {"output_tokens": 4})


def test_our_gateway_asks_another_node_when_this_one_is_busy(
    market: RunningMarket, culprit: JavascriptPeer, our_node: str
) -> None:
    culprit.call("behave", refuse="busy")
    asked = count_up(2) | {"model": CHAT_MODEL, "temperature": 0}
    node, text, usage = stream(market, culprit.id, our_node, **asked)
    assert node == our_node
    assert text
    assert usage["completion_tokens"] <= 2
    (refused,) = wait(lambda: culprit.call("handed"), lambda handed: handed)
    assert (refused["code"], refused["state"], refused["amount_nano"]) == ("busy", "settled", 0)


def test_our_gateway_leaves_a_node_that_claims_more_than_it_sent(
    market: RunningMarket, culprit: JavascriptPeer
) -> None:
    culprit.call("behave", claimAhead=1)
    only = ANYWHERE | {"only": [culprit.id]}
    with market.client() as client:
        asked = count_up(6) | {"model": FIXED_MODEL, "provider": only}
        response = client.post("/v1/chat/completions", json=asked)
    assert response.status_code >= 500
    assert response.json()["error"]["code"] == "receipt_mismatch"


def make_model(number: int) -> dict[str, Any]:
    """64 of these are too long for an offer."""
    units = dict.fromkeys(("context_tokens", "queue_max", "prefill_tps", "decode_tps"), 1)
    kind = {"task": "causal_lm", "quantization": "none", "slots": 1, "price": {}}
    named = {"name": f"{number:0128}", "manifest_digest": f"{number:064x}"}
    return units | kind | named | {"features": ["f" * 128]}


DAY_MS = 86_400_000
BAD_OFFERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("frame_too_large", {"changes": {"models": [make_model(n) for n in range(64)]}}),
    ("malformed", {"changes": {"sequence": -1}}),
    ("offer_implausible", {"changes": {"incarnation_ms": DAY_MS}, "life_ms": 241_000}),
    ("offer_implausible", {"changes": {"incarnation_ms": DAY_MS}, "life_ms": -1}),
    ("offer_implausible", {"issued_in_ms": -DAY_MS, "life_ms": 60_000}),
    ("not_yet_valid", {"issued_in_ms": DAY_MS, "life_ms": 60_000}),
    ("expired", {"changes": {"incarnation_ms": 1}, "issued_in_ms": -DAY_MS, "life_ms": 60_000}),
    ("offer_regressed", {"changes": {"incarnation_ms": 1}}),
)


def test_offers_are_refused_by_the_word_of_the_page(culprit: JavascriptPeer) -> None:
    answers = [culprit.call("try_attach", **offer) for _, offer in BAD_OFFERS]
    assert answers == [code for code, _ in BAD_OFFERS]
    assert culprit.call("try_attach") == "nothing"


def test_two_processes_with_one_key_get_no_jobs(
    buyer: JavascriptPeer, culprit: JavascriptPeer
) -> None:
    twin = {"sequence": 0, "region": "elsewhere"}
    assert culprit.call("try_attach", changes=twin) == "offer_conflict"
    with pytest.raises(PeerError, match="key_conflict") as refused:
        purchase(buyer, culprit, 1)
    assert refused.value.code == "no_node_fits"


def test_a_node_that_leaves_says_so_with_an_offer_of_no_models(
    buyer: JavascriptPeer, culprit: JavascriptPeer
) -> None:
    assert purchase(buyer, culprit, 1)[0]["node"] == culprit.id
    assert culprit.call("drain") >= 1
    request = {"model": FIXED_MODEL, "constraints": ANYWHERE | {"only": [culprit.id]}}
    with pytest.raises(PeerError) as refused:
        buyer.call("purchase", input=count_up(1), request=request)
    assert refused.value.code in ("no_node_fits", "unknown_model")

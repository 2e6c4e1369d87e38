"""A client in JavaScript, made from docs/protocol.md and stock libp2p, buys from our node."""

from typing import Any

import pytest

from sim.demo import CHAT_MODEL, EMBEDDING_MODEL
from tests.integration.conftest import RunningMarket
from tests.interop.conftest import earned
from tests.interop.javascript import JavascriptPeer

pytestmark = [pytest.mark.slow, pytest.mark.models]

# More than one window of a stranger, and few: two cores run a market and this.
TOKENS = 20
WINDOW = 16
FEE_BPS = 500


def chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a story."}]
    return {"max_tokens": TOKENS, "messages": messages, "temperature": 0} | changes


def buy(buyer: JavascriptPeer, model: str, order: dict[str, Any], **more: Any) -> dict[str, Any]:
    request = {"model": model} | more.pop("request", {})
    bought: dict[str, Any] = buyer.call("buy", input=order, request=request, **more)
    return bought


def balance(buyer: JavascriptPeer) -> int:
    told = buyer.call("ask", method="balance", value={})
    return int(told["available_nano"] + told["held_nano"])


def test_a_text_is_bought_in_windows_that_both_sides_signed_for(
    market: RunningMarket, buyer: JavascriptPeer
) -> None:
    before = balance(buyer)
    bought = buy(buyer, CHAT_MODEL, chat())
    assert bought["agrees"] is True
    receipt, lease = bought["receipt"], bought["lease"]
    assert (receipt["finish"], receipt["code"]) == ("length", "")
    assert receipt["units"] == bought["counted"]
    assert len(bought["token_ids"]) == TOKENS
    assert bought["text"]
    # A stranger: the first output, and one window.
    assert (lease["client_standing"], lease["window_tokens"]) == (1, WINDOW)
    assert bought["node_link"] == bought["signed_link"] == 1 + TOKENS // WINDOW
    assert receipt["countersigned"]["index"] >= 1
    # What the results can be checked by later.
    assert receipt["input_digest"]
    assert receipt["profile"]
    # Paid exactly, and the node had no account before.
    assert bought["settled"]["state"] == "settled"
    assert bought["settled"]["amount_nano"] == receipt["amount_nano"]
    assert balance(buyer) == before - receipt["amount_nano"]
    assert earned(market, bought["node"]) == receipt["amount_nano"] * (10_000 - FEE_BPS) // 10_000


def test_a_quote_names_the_node_and_holds_what_a_lease_would_hold(buyer: JavascriptPeer) -> None:
    units = {"input_tokens": 128, "output_tokens": TOKENS}
    ask = {"model": CHAT_MODEL, "task": "causal_lm", "units_expected": units, "units_max": units}
    quote = buyer.call("ask", method="quote", value=ask)
    candidate = quote["candidates"][0]
    listed = buyer.call("ask", method="nodes", value={"model": quote["model_digest"]})["nodes"]
    assert [summary["node"] for summary in listed] == [candidate["node"]]
    offer = buyer.call("open_offer", offer=listed[0]["offer"])
    names = {model["manifest_digest"]: model["name"] for model in offer["models"]}
    assert names[quote["model_digest"]] == CHAT_MODEL
    parts = [candidate[name] for name in ("rtt_ms", "queue_ms", "prefill_ms", "decode_ms")]
    assert abs(candidate["latency_ms"] - sum(parts)) < 1
    assert quote["ceiling_nano"] > 0


def test_embeddings_are_bought_in_one_piece(buyer: JavascriptPeer) -> None:
    order = {"texts": ["one", "two words"]}
    request = {"task": "embedding", "units_max": {"input_tokens": 64}}
    bought = buy(buyer, EMBEDDING_MODEL, order, request=request)
    assert bought["data"] == {"dimensions": 384, "vectors": 2, "bytes": [4 * 384] * 2}
    assert bought["receipt"]["finish"] == "complete"
    assert bought["node_link"] == 0
    assert bought["agrees"] is True
    assert bought["settled"]["state"] == "settled"


def test_a_job_that_is_cancelled_is_paid_for_what_came(buyer: JavascriptPeer) -> None:
    bought = buy(buyer, CHAT_MODEL, chat(), behaviour={"cancelAfterChunks": 2})
    assert bought["receipt"]["finish"] == "cancelled"
    assert 2 <= len(bought["token_ids"]) < TOKENS
    assert bought["agrees"] is True
    assert bought["settled"]["amount_nano"] == bought["receipt"]["amount_nano"] > 0


def test_an_answer_ends_at_the_lease_whatever_max_tokens_says(buyer: JavascriptPeer) -> None:
    request = {"units_max": {"input_tokens": 128, "output_tokens": 3}}
    bought = buy(buyer, CHAT_MODEL, chat(max_tokens=50, ignore_eos=True), request=request)
    assert len(bought["token_ids"]) == 3
    assert bought["receipt"]["finish"] == "length"
    assert bought["agrees"] is True


def test_a_client_that_stops_signing_gets_two_windows_and_no_more(buyer: JavascriptPeer) -> None:
    """It signs for the first output only, and cancels some time after two windows have come."""
    silent = {"signUpTo": 1, "cancelAfterTokens": 2 * WINDOW}
    bought = buy(buyer, CHAT_MODEL, chat(max_tokens=50, ignore_eos=True), behaviour=silent)
    assert len(bought["token_ids"]) == 2 * WINDOW
    assert bought["receipt"]["finish"] == "cancelled"
    assert bought["receipt"]["countersigned"]["index"] == 1
    assert bought["settled"]["state"] == "settled"


def test_stock_libp2p_gets_its_pings_back(buyer: JavascriptPeer) -> None:
    assert buyer.call("ping", bytes="ab" * 32) == "ab" * 32


def test_a_long_payload_comes_in_pieces(buyer: JavascriptPeer) -> None:
    """Fields of a later version fill it, which a node ignores."""
    bought = buy(buyer, CHAT_MODEL, chat(max_tokens=1), padding=300_000)
    assert bought["receipt"]["finish"] == "length"
    assert bought["agrees"] is True

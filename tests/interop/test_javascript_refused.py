"""What our coordinator and node refuse when a JavaScript client tries it, by the page's words."""

import pytest

from sim.demo import CHAT_MODEL
from tests.interop.javascript import JavascriptPeer

pytestmark = [pytest.mark.slow, pytest.mark.models]

# In this order: the first ones share a lease, which is used at last.
REFUSED = {
    "an ask that is no map": "malformed",
    "an ask with a field twice": "malformed",
    "an ask with bytes after it": "trailing_bytes",
    "an ask that ends early": "truncated",
    "nil where the default is a text": "malformed",
    "a float for an integer": "malformed",
    "a method that there is not": "not_found",
    "a quote of a model that is not sold": "unknown_model",
    "too many nodes to exclude": "malformed",
    "a request with a forged signature": "bad_signature",
    "a request that was signed as another kind": "bad_signature",
    "an envelope of another version": "unknown_version",
    "an envelope above its limit": "frame_too_large",
    "the request of another client": "wrong_signer",
    "a request for another coordinator": "wrong_audience",
    "a deadline that is too far": "malformed",
    "a request from the future": "not_yet_valid",
    "a request that is over": "expired",
    "a model that is not sold": "unknown_model",
    "a task that the model does not do": "no_node_fits",
    "a cost that no node takes": "no_node_fits",
    "a job id in lower case": "malformed",
    "a job id that is taken": "already_exists",
    "a client without an account": "unknown_account",
    "a frame of another version": "unknown_version",
    "another frame before HELLO": "unexpected_frame",
    "a second HELLO": "unexpected_frame",
    "a HELLO of other versions": "unknown_version",
    "a HELLO that is none": "malformed",
    "a request on channel 0": "unexpected_frame",
    "a body above its limit": "frame_too_large",
    "an end within a frame": "truncated",
    "a frame type that is not known": "unexpected_frame",
    "a channel that is used again": "unexpected_frame",
    "load before an attach": "unexpected_frame",
    "an attach with the offer of another": "wrong_signer",
    "a payload that is not the one of the request": "digest_mismatch",
    "a lease with a forged signature": "bad_signature",
    "a lease that the client signed itself": "untrusted_coordinator",
    "an opening of another lease": "digest_mismatch",
    "an opening for another node": "wrong_audience",
    "an opening signed by another": "wrong_signer",
    "a request that the lease does not name": "digest_mismatch",
    "a frame in place of JOB_OPEN": "unexpected_frame",
    "a payload that is no input of the task": "invalid_input",
    "an input of two kinds": "invalid_input",
    "an input above the lease": "input_too_large",
    "JOB_DATA after the whole payload": "unexpected_frame",
    "JOB_OPEN for the second time": "unexpected_frame",
    "a frame that only nodes send": "unexpected_frame",
    "a link of another chain": "bad_signature",
    "a link for less input": "unsigned",
    "a lease for the second time": "replayed",
    "an acceptance that contradicts its own counts": "receipt_mismatch",
    "a receipt that the client signed itself": "wrong_signer",
    "a delivery with a forged signature": "bad_signature",
    "a delivery that another signed": "wrong_signer",
    "a delivery of another lease": "digest_mismatch",
    "a delivery of a lease that there is not": "not_found",
    "a delivery of more than was leased": "receipt_mismatch",
    "a delivery that contradicts the first": "already_exists",
    "a delivery after the receipt was paid": "expired",
}


@pytest.fixture(scope="module")
def client(buyer: JavascriptPeer, our_node: str) -> JavascriptPeer:
    assert buyer.call("refusals", model=CHAT_MODEL, node=our_node) == list(REFUSED)
    return buyer


@pytest.mark.parametrize(("what", "code"), REFUSED.items())
def test_it_is_refused_by_the_word_of_the_page(
    client: JavascriptPeer, what: str, code: str
) -> None:
    assert client.call("refused", what=what) == code

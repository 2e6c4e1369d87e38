import dataclasses
from functools import partial

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encode
from protocol.envelope import (
    SignedMessage,
    open_envelope,
    open_vouched,
    read_unverified,
    seal,
)
from protocol.errors import Code, LocalProtocolError, RemoteProtocolError
from protocol.limits import (
    LIST_ITEMS_MAX,
    NAME_BYTES_MAX,
    NAME_CHARS_MAX,
    OFFER_BYTES_MAX,
    SIGNED_BYTES_MAX,
)
from protocol.messages import Constraints, JobRequest, Lease, Receipt
from protocol.offers import NodeOffer
from tests.protocol.makers import CLIENT, NODE, STRANGER, make_chain, make_request
from tests.protocol.test_protocol_page import wire_messages

SEALED = seal(CLIENT, make_request())


def refused(raw: bytes) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        open_envelope(raw, JobRequest)
    return caught.value.code


def repack(**changes: object) -> bytes:
    names = ["version", "kind", "public_key", "body", "signature"]
    parts = dict(zip(names, msgpack.unpackb(SEALED.raw, raw=False), strict=True))
    packed: bytes = msgpack.packb(list((parts | changes).values()), use_bin_type=True)
    return packed


def test_what_is_sealed_opens_to_the_same() -> None:
    assert open_envelope(SEALED.raw, JobRequest) == SEALED


def longest_request() -> JobRequest:
    names = tuple(f"{number:0{NAME_BYTES_MAX}}" for number in range(LIST_ITEMS_MAX))
    nodes = (NODE.peer_id,) * LIST_ITEMS_MAX
    constraints = Constraints(
        order=nodes, only=nodes, ignore=nodes, quantizations=names, regions=names
    )
    return dataclasses.replace(
        make_request(), model="\U0001f642" * NAME_CHARS_MAX, constraints=constraints
    )


def test_the_longest_request_that_the_rules_allow_can_be_opened() -> None:
    sealed = seal(CLIENT, longest_request())
    assert open_envelope(sealed.raw, JobRequest) == sealed


def test_what_nobody_would_open_is_not_sealed() -> None:
    """A name that is short in characters may be long in bytes."""
    with pytest.raises(ValueError, match="quantizations"):
        Constraints(quantizations=("\U0001f642" * (NAME_BYTES_MAX // 4 + 1),))
    request = longest_request()
    too_long = ("x" * SIGNED_BYTES_MAX,)
    object.__setattr__(request.constraints, "regions", too_long)
    with pytest.raises(LocalProtocolError, match="over the limit"):
        seal(CLIENT, request)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_is_accepted(place: int, flip: int) -> None:
    raw = bytearray(SEALED.raw)
    raw[place % len(raw)] ^= flip
    with pytest.raises(RemoteProtocolError):
        open_envelope(bytes(raw), JobRequest)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_envelope(raw, JobRequest)


def test_another_signer_is_refused_before_the_signature_is_checked() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_envelope(SEALED.raw, JobRequest, signer=STRANGER.peer_id)
    assert caught.value.code is Code.WRONG_SIGNER


def test_a_foreign_key_does_not_fit_the_signature() -> None:
    assert refused(repack(public_key=STRANGER.public_key)) is Code.BAD_SIGNATURE


def test_a_changed_body_is_refused() -> None:
    other = dataclasses.replace(SEALED.message, model="another-model")
    assert refused(repack(body=encode(other))) is Code.BAD_SIGNATURE


def test_a_signature_does_not_fit_another_kind() -> None:
    # The same body under another kind: the domain separation must break the signature.
    with pytest.raises(RemoteProtocolError) as caught:
        open_envelope(repack(kind="lease"), Lease)
    assert caught.value.code is Code.BAD_SIGNATURE


def test_another_kind_than_expected_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="expected a receipt"):
        open_envelope(SEALED.raw, Receipt)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (repack(version=2), Code.UNKNOWN_VERSION),
        (repack(version=2**64 - 1), Code.UNKNOWN_VERSION),
        (repack(version=True), Code.MALFORMED),
        (repack(version=1.0), Code.MALFORMED),
        # As deep as msgpack reads: text made of it would exceed Python's stack.
        (b"\x91" * 1_000 + b"\xc0", Code.MALFORMED),
        (repack(signature=b"short"), Code.MALFORMED),
        (repack(public_key="text"), Code.MALFORMED),
        (repack(kind=7), Code.MALFORMED),
        (SEALED.raw + b"\x00", Code.TRAILING_BYTES),
        (SEALED.raw[:-1], Code.MALFORMED),
        (b"x" * (SIGNED_BYTES_MAX + 1), Code.FRAME_TOO_LARGE),
        (b"", Code.MALFORMED),
    ],
)
def test_a_malformed_envelope_is_refused(raw: bytes, code: Code) -> None:
    assert refused(raw) is code


def test_the_digest_names_the_content_not_the_signature() -> None:
    chain = make_chain()
    assert chain.lease.message.request_digest == chain.request.digest
    assert chain.receipt.message.lease_digest == chain.lease.digest


SIGNED: dict[str, type[SignedMessage]] = {
    cls.KIND: cls for cls in wire_messages().values() if hasattr(cls, "KIND")
}


@pytest.mark.parametrize("cls", SIGNED.values(), ids=SIGNED)
def test_the_size_of_an_envelope_is_looked_at_before_anything_in_it(
    cls: type[SignedMessage],
) -> None:
    """Attaching decoded an offer, and checked its signature, before its size."""
    raw = b"\xc1" * (cls.BYTES_MAX + 1)
    codes = set()
    for read in (
        partial(open_envelope, raw, cls),
        partial(open_vouched, raw, cls, digest=SEALED.digest),
        partial(read_unverified, raw, cls),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            read()
        codes.add(caught.value.code)
    assert codes == {Code.FRAME_TOO_LARGE}
    bound = OFFER_BYTES_MAX if cls is NodeOffer else SIGNED_BYTES_MAX
    assert bound == cls.BYTES_MAX

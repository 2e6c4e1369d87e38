import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.ids import (
    PeerId,
    derive_ulid,
    is_digest,
    new_ulid,
    parse_peer_id,
    parse_ulid,
    peer_id_from_public_key,
    public_key_from_peer_id,
    sha256_digest,
    ulid_time_ms,
)

public_keys = st.binary(min_size=32, max_size=32)
entropies = st.binary(min_size=10, max_size=10)
times = st.integers(min_value=0, max_value=2**47)


@given(public_keys)
def test_a_peer_id_holds_its_key(public_key: bytes) -> None:
    assert public_key_from_peer_id(peer_id_from_public_key(public_key)) == public_key


def test_peer_ids_are_libp2ps() -> None:
    # The identity multihash of a protobuf-wrapped Ed25519 key always begins like this.
    assert peer_id_from_public_key(bytes(32)).startswith("12D3Koo")


@pytest.mark.parametrize("text", ["", "0OIl", "12D3KooW", "Qm" + "a" * 44, "z" * 10_000, "é"])
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not an Ed25519 peer id"):
        parse_peer_id(text)


@given(times, times, entropies, entropies)
def test_ulids_sort_by_time(first: int, second: int, a: bytes, b: bytes) -> None:
    if first < second:
        assert new_ulid(first, a) < new_ulid(second, b)


@given(times, entropies)
def test_ulids_parse_and_tell_their_time(now_ms: int, entropy: bytes) -> None:
    ulid = new_ulid(now_ms, entropy)
    assert parse_ulid(ulid) == ulid
    assert ulid_time_ms(ulid) == now_ms


@given(times, entropies)
def test_derived_ulids_are_stable_and_apart(now_ms: int, entropy: bytes) -> None:
    base = new_ulid(now_ms, entropy)
    derived = derive_ulid(base, "hold")
    assert derived == derive_ulid(base, "hold")
    assert derived not in (base, derive_ulid(base, "capture"))
    assert parse_ulid(derived)[:10] == base[:10]


@pytest.mark.parametrize("text", ["", "8" + "0" * 25, "0" * 27, "0" * 25 + "I", "0" * 25 + "a"])
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not a ULID"):
        parse_ulid(text)


def test_digests_are_lower_case_hex() -> None:
    assert is_digest(sha256_digest(b""))
    assert not any(map(is_digest, ("", "E3" * 32, "0" * 63, "g" * 64)))


def test_wrong_sizes_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_from_public_key(b"short")
    with pytest.raises(ValueError, match="entropy"):
        new_ulid(0, b"short")


def test_a_long_peer_id_costs_no_base58() -> None:
    with pytest.raises(RemoteProtocolError):
        public_key_from_peer_id(PeerId("1" * 1_000_000))

"""Hash chains: what a link proves, and what it does not."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, RemoteProtocolError
from protocol.limits import INPUT_STEPS_MAX, LINKS_MAX, TOKENS_MAX
from protocol.pricing import Units
from protocol.windows import (
    ChainReader,
    ClientChains,
    Countersigned,
    HashChain,
    WindowTerms,
    pack_progress,
    parse_countersign,
    parse_progress,
)
from tests.protocol.makers import CLIENT, NODE

SECRET = b"s" * 32
CHAIN = HashChain(SECRET, 10)


def code_of(reader: ChainReader, index: int, link: bytes) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        reader.advance(index, link)
    return caught.value.code


def test_a_link_hashes_to_the_one_before_it_down_to_the_anchor() -> None:
    assert CHAIN.link(10) == SECRET
    for index in range(10):
        assert hashlib.sha256(CHAIN.link(index + 1)).digest() == CHAIN.link(index)
    assert CHAIN.anchor == CHAIN.link(0)


@given(st.lists(st.integers(0, 10), min_size=1).map(sorted))
def test_links_are_taken_in_any_rising_order(indexes: list[int]) -> None:
    reader = ChainReader(CHAIN.anchor, 10)
    for index in indexes:
        reader.advance(index, CHAIN.link(index))
    assert (reader.index, reader.link) == (indexes[-1], CHAIN.link(indexes[-1]))


@given(st.integers(1, 10), st.binary(min_size=32, max_size=32))
def test_a_link_that_the_owner_did_not_reveal_is_refused(index: int, forged: bytes) -> None:
    reader = ChainReader(CHAIN.anchor, 10)
    if forged != CHAIN.link(index):
        assert code_of(reader, index, forged) is Code.BAD_SIGNATURE
    assert reader.index == 0


def test_a_link_under_another_number_is_refused() -> None:
    assert code_of(ChainReader(CHAIN.anchor, 10), 4, CHAIN.link(3)) is Code.BAD_SIGNATURE


def test_an_index_that_goes_back_or_beyond_the_chain_is_refused() -> None:
    reader = ChainReader(CHAIN.anchor, 10)
    reader.advance(5, CHAIN.link(5))
    assert code_of(reader, 4, CHAIN.link(4)) is Code.MALFORMED
    assert code_of(reader, 11, SECRET) is Code.MALFORMED
    assert code_of(reader, 6, b"short") is Code.MALFORMED
    assert reader.index == 5


@given(st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX), st.integers(16, 256))
def test_every_count_within_a_lease_has_a_link(
    input_tokens: int, output_tokens: int, window_tokens: int
) -> None:
    terms = WindowTerms.of(Units(input_tokens, output_tokens), window_tokens)
    assert terms.output_links <= LINKS_MAX
    assert terms.input_links <= INPUT_STEPS_MAX
    assert 1 <= terms.output_index(output_tokens) <= terms.output_links
    assert 0 <= terms.input_index(input_tokens) <= terms.input_links


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_a_link_stands_for_what_was_counted_within_one_step(
    input_tokens: int, output_tokens: int
) -> None:
    terms = WindowTerms.of(Units(5_000, 5_000), 16)
    signed_output = terms.signed_output(terms.output_index(output_tokens))
    assert signed_output <= output_tokens < signed_output + terms.window_tokens
    least, most = terms.signed_input(terms.input_index(input_tokens))
    assert least <= input_tokens <= most < least + terms.input_step_tokens or input_tokens == 0


def test_a_client_has_the_same_chains_after_a_restart_and_others_for_another_lease() -> None:
    terms = WindowTerms.of(Units(100, 100), 16)
    first = ClientChains(CLIENT, "a" * 64, terms)
    again = ClientChains(CLIENT, "a" * 64, terms)
    assert again.countersign(50, 40) == first.countersign(50, 40)
    for key, lease in ((CLIENT, "b" * 64), (NODE, "a" * 64)):
        other = ClientChains(key, lease, terms)
        assert other.output_anchor != first.output_anchor
        assert other.input_anchor != first.input_anchor
    assert first.input_anchor != first.output_anchor


def test_a_countersignature_proves_itself_against_the_anchors() -> None:
    terms = WindowTerms.of(Units(100, 100), 16)
    chains = ClientChains(CLIENT, "a" * 64, terms)
    links = Countersigned(*parse_countersign(chains.countersign(50, 40)))
    ChainReader(chains.input_anchor, terms.input_links).advance(links.input_index, links.input_link)
    ChainReader(chains.output_anchor, terms.output_links).advance(links.index, links.link)
    assert terms.signed_output(links.index) == 32


@pytest.mark.parametrize("body", [b"", bytes(71), bytes(73)])
def test_a_countersignature_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_countersign(body)
    assert caught.value.code is Code.MALFORMED


def test_progress_travels_as_36_bytes() -> None:
    body = pack_progress(3, CHAIN.link(3))
    assert parse_progress(body) == (3, CHAIN.link(3))
    with pytest.raises(RemoteProtocolError):
        parse_progress(body + b"x")


def test_links_of_a_wrong_size_are_no_countersignature() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Countersigned(0, b"", 0, b"")

from dataclasses import dataclass
from enum import StrEnum

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import added, decode, encode
from protocol.errors import Code, ErrorBody, RemoteProtocolError
from protocol.generation import ChatMessage, GenerationInput
from protocol.limits import CHAT_MESSAGES_MAX, CONTAINERS_MAX
from protocol.messages import JobRequest, Lease, Receipt
from protocol.offers import NodeOffer
from protocol.payload import Chunk
from protocol.pricing import PriceSheet, Units
from tests.protocol.makers import make_chain, make_request
from tests.protocol.test_protocol_page import wire_messages


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    ratio: float = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    data: bytes
    flag: bool
    colour: Colour
    inner: Inner
    items: tuple[Inner, ...] = ()
    note: str | None = None


SAMPLE = Sample("n", b"\x00\xff", True, Colour.BLUE, Inner(3), (Inner(4, 1.25),), "hello")

int64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
inners = st.builds(Inner, int64, st.floats(allow_nan=False, allow_infinity=False))
samples = st.builds(
    Sample,
    name=st.text(max_size=20),
    data=st.binary(max_size=20),
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    inner=inners,
    items=st.lists(inners, max_size=4).map(tuple),
    note=st.none() | st.text(max_size=5),
)


def refused(cls: type[object], data: bytes) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(cls, data)
    return caught.value.code


def with_field(name: str, value: object) -> bytes:
    plain = msgpack.unpackb(encode(SAMPLE), raw=False)
    plain[name] = value
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return packed


@given(samples)
def test_what_is_encoded_decodes_to_the_same(sample: Sample) -> None:
    assert decode(Sample, encode(sample)) == sample


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_crash(data: bytes) -> None:
    for cls in (Sample, JobRequest, Lease, Receipt, NodeOffer, GenerationInput, Chunk):
        try:
            decode(cls, data)
        except RemoteProtocolError:
            continue


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_byte_is_refused_or_gives_another_valid_message(place: int, value: int) -> None:
    data = bytearray(encode(make_request()))
    data[place % len(data)] = value
    try:
        message = decode(JobRequest, bytes(data))
    except RemoteProtocolError:
        return
    assert isinstance(message, JobRequest)


@given(st.integers(min_value=0))
def test_every_cut_is_refused(place: int) -> None:
    data = encode(SAMPLE)
    assert refused(Sample, data[: place % len(data)]) in (Code.TRUNCATED, Code.MALFORMED)


def test_trailing_bytes_are_refused() -> None:
    assert refused(Sample, encode(SAMPLE) + b"\x00") is Code.TRAILING_BYTES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 7),
        ("name", b"bytes"),
        ("data", "text"),
        ("flag", 1),
        ("colour", "green"),
        ("colour", [1]),
        ("inner", 3),
        ("inner", {"ratio": 1.0}),
        ("inner", {"number": True}),
        ("inner", {"number": 2**63}),
        ("inner", {"number": 1, "ratio": float("nan")}),
        ("inner", {"number": 1, "ratio": float("inf")}),
        ("inner", {"number": 1.0}),
        ("items", {"0": 1}),
        ("items", [None]),
        ("note", 5),
    ],
)
def test_a_wrong_type_is_refused(name: str, value: object) -> None:
    assert refused(Sample, with_field(name, value)) is Code.MALFORMED


def test_a_missing_field_is_refused_by_name() -> None:
    with pytest.raises(RemoteProtocolError, match="number is missing"):
        decode(Inner, msgpack.packb({"ratio": 1.0}))


def test_an_unknown_field_of_a_newer_peer_is_ignored() -> None:
    assert decode(Sample, with_field("added_in_2027", [1, 2])) == SAMPLE


def test_absent_optionals_take_their_defaults() -> None:
    assert decode(Inner, msgpack.packb({"number": 1})) == Inner(1, 0.5)
    assert b"note" not in encode(Sample("", b"", False, Colour.RED, Inner(0)))


def test_a_none_without_a_default_survives() -> None:
    @dataclass(frozen=True)
    class Measured:
        rtt_ms: float | None
        name: str

    assert decode(Measured, encode(Measured(None, "n"))) == Measured(None, "n")
    assert decode(Measured, encode(Measured(1.5, "n"))) == Measured(1.5, "n")


def test_a_bound_of_the_class_itself_becomes_malformed() -> None:
    data = msgpack.packb({"input_tokens": -1})
    assert refused(Units, data) is Code.MALFORMED
    assert refused(PriceSheet, msgpack.packb({"image_nano": 2**62})) is Code.MALFORMED


def test_nesting_bombs_are_refused() -> None:
    assert refused(Sample, b"\x91" * 100_000) in (Code.TRUNCATED, Code.MALFORMED)


def test_a_claimed_giant_array_costs_nothing() -> None:
    assert refused(Sample, b"\xdd\xff\xff\xff\xff") in (Code.TRUNCATED, Code.MALFORMED)


def test_extension_types_are_refused() -> None:
    assert refused(Sample, msgpack.packb(msgpack.Timestamp(1))) is Code.MALFORMED


def test_signed_messages_round_trip() -> None:
    chain = make_chain()
    assert decode(JobRequest, encode(chain.request.message)) == chain.request.message
    assert decode(Receipt, encode(chain.receipt.message)) == chain.receipt.message


def test_a_type_that_cannot_travel_is_our_bug() -> None:
    @dataclass(frozen=True)
    class Bad:
        value: complex

    with pytest.raises(TypeError, match="cannot travel"):
        decode(Bad, msgpack.packb({"value": 1}))


# What a later version may say, and what no version may.


@dataclass(frozen=True, slots=True)
class Painted:
    colour: Colour
    number: int = 0


@dataclass(frozen=True, slots=True)
class Gallery:
    pictures: tuple[Painted, ...]
    colours: tuple[Colour, ...] = ()
    frame: Painted | None = None


def gallery(**fields: object) -> bytes:
    packed: bytes = msgpack.packb({"pictures": [], **fields})
    return packed


def test_an_item_with_an_unknown_word_is_left_out_of_its_list() -> None:
    data = gallery(pictures=[{"colour": "red"}, {"colour": "ultraviolet"}, {"colour": "blue"}])
    assert decode(Gallery, data).pictures == (Painted(Colour.RED), Painted(Colour.BLUE))


def test_an_item_that_is_wrong_in_another_way_spoils_the_message() -> None:
    assert refused(Gallery, gallery(pictures=[{"colour": 7.5}])) is Code.MALFORMED
    assert refused(Gallery, gallery(pictures=[{"number": 1}])) is Code.MALFORMED


def test_an_unknown_word_outside_a_list_of_messages_is_refused() -> None:
    # Leaving a word out of a list of words would change what the list says.
    assert refused(Gallery, gallery(colours=["red", "ultraviolet"])) is Code.MALFORMED
    assert refused(Gallery, gallery(frame={"colour": "ultraviolet"})) is Code.MALFORMED


@pytest.mark.parametrize("place", ["message", "nested message", "list item"])
def test_a_field_that_comes_twice_is_refused(place: str) -> None:
    twice = b"\x82" + 2 * (msgpack.packb("number") + msgpack.packb(1))
    plain = {name: msgpack.packb(value) for name, value in msgpack.unpackb(encode(SAMPLE)).items()}
    if place == "message":
        data = b"\x88" + b"".join(msgpack.packb(name) + v for name, v in plain.items())
        data += msgpack.packb("name") + plain["name"]
    else:
        plain["inner" if place == "nested message" else "items"] = (
            twice if place == "nested message" else b"\x91" + twice
        )
        data = b"\x87" + b"".join(msgpack.packb(name) + v for name, v in plain.items())
    assert refused(Sample, data) is Code.MALFORMED


@pytest.mark.parametrize("name", ["name", "data", "flag", "colour", "inner", "items"])
def test_nil_is_refused_where_the_default_is_not_absent(name: str) -> None:
    assert refused(Sample, with_field(name, None)) is Code.MALFORMED


def test_nil_says_absent_where_that_is_the_default() -> None:
    assert decode(Sample, with_field("note", None)).note is None


@pytest.mark.parametrize("code", ["busy", "moon_phase"])
def test_a_code_travels_whether_this_version_lists_it_or_not(code: str) -> None:
    body = decode(ErrorBody, msgpack.packb({"code": code, "message": ""}))
    assert body.code == code
    assert decode(ErrorBody, encode(body)) == body


@pytest.mark.parametrize("code", ["", "Busy", "a b", "x\ny", "x" * 65, 7, None])
def test_a_code_that_is_not_a_word_is_refused(code: object) -> None:
    data = msgpack.packb({"code": code, "message": ""})
    assert refused(ErrorBody, data) is Code.MALFORMED


@pytest.mark.parametrize("cls", wire_messages().values())
@pytest.mark.parametrize("filler", [[], {}, [[]], {"a": {}}])
def test_no_message_is_read_with_more_containers_than_any_needs(cls: type, filler: object) -> None:
    """A quarter of a megabyte of empty maps became 17 megabytes, and a tenth of a second, in a
    field that nothing reads."""
    packed = msgpack.packb({"not_a_field": [filler] * CONTAINERS_MAX})
    with pytest.raises(RemoteProtocolError, match="too many maps and lists") as caught:
        decode(cls, packed)
    assert caught.value.code is Code.MALFORMED


def test_the_message_with_most_containers_is_read() -> None:
    chat = GenerationInput(1, messages=(ChatMessage("user", "x"),) * CHAT_MESSAGES_MAX)
    packed = encode(chat)
    assert len(packed) > CONTAINERS_MAX, "short messages are not counted"
    assert decode(GenerationInput, packed) == chat


@dataclass(frozen=True, slots=True)
class Grown:
    old: int = 0
    new: int = added(0)


def test_an_added_field_is_written_only_where_it_says_something() -> None:
    assert msgpack.unpackb(encode(Grown())) == {"old": 0}
    assert msgpack.unpackb(encode(Grown(1, 2))) == {"old": 1, "new": 2}
    assert decode(Grown, encode(Grown())) == Grown()
    assert decode(Grown, msgpack.packb({"old": 1, "new": None})) == Grown(1)
    assert decode(Grown, encode(Grown(1, 2))) == Grown(1, 2)

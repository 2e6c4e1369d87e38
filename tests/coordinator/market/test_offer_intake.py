"""Raw offers: what is refused, at what price, and who pays it."""

import random
from dataclasses import replace

import msgpack
import pytest

from coordinator.market.offers.intake import JUNK, OFFERS, Intake
from protocol.codec import encode
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest
from protocol.keys import verify
from protocol.limits import CLOCK_SKEW_MAX_MS, OFFER_BYTES_MAX, OFFER_LIFETIME_MAX_MS
from protocol.offers import NodeOffer
from protocol.services import OFFER_SHARDS, offer_topic, shard_of
from tests.coordinator.market_makers import NOW_MS, key, model_offer, node, node_offer, sealed

VIA = node(99)


class Checked:
    """How many offers had their signatures checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr("protocol.envelope.verify", self._verify)

    def _verify(self, *signed: object) -> None:
        self.count += 1
        verify(*signed)  # type: ignore[arg-type]  # as it came


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    return Checked(monkeypatch)


def take(intake: Intake, raw: bytes, *, now_ms: int = NOW_MS, via: str = VIA) -> Code | None:
    """The refusal's code, or None if the offer is good."""
    try:
        intake.open(raw, now_ms=now_ms, via=via)  # type: ignore[arg-type]  # any text will do
    except RemoteProtocolError as error:
        return error.code
    return None


def forged(number: int, offer: NodeOffer) -> bytes:
    raw = bytearray(sealed(number, offer).raw)
    raw[-1] ^= 1
    return bytes(raw)


def test_a_good_offer_is_opened() -> None:
    offer = node_offer(1)
    signed = Intake().open(sealed(1, offer).raw, now_ms=NOW_MS, via=VIA)
    assert signed.message == offer
    assert signed.signer == node(1)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", Code.MALFORMED),
        (b"\x00" * 100, Code.MALFORMED),
        (b"\xff" * 100, Code.MALFORMED),
        (b"\x95" + b"\xc1" * 5, Code.MALFORMED),
        (sealed(1, node_offer(1)).raw[:-1], Code.MALFORMED),
        (sealed(1, node_offer(1)).raw + b"\0", Code.MALFORMED),
        (forged(1, node_offer(1)), Code.BAD_SIGNATURE),
        (b"\x00" * (OFFER_BYTES_MAX + 1), Code.FRAME_TOO_LARGE),
    ],
)
def test_bytes_that_are_no_offer_are_refused_with_a_code(raw: bytes, code: Code) -> None:
    found = take(Intake(), raw)
    assert found is not None
    assert found is code or (code is Code.MALFORMED and found in (Code.TRAILING_BYTES,))


def test_an_offer_in_the_name_of_another_node_is_refused() -> None:
    stolen = seal(key(2), node_offer(1))
    assert take(Intake(), stolen.raw) is Code.WRONG_SIGNER


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        (node_offer(1, lifetime_ms=OFFER_LIFETIME_MAX_MS + 1), Code.OFFER_IMPLAUSIBLE),
        (node_offer(1, lifetime_ms=0), Code.OFFER_IMPLAUSIBLE),
        (node_offer(1, lifetime_ms=-1), Code.OFFER_IMPLAUSIBLE),
        (node_offer(1, incarnation_ms=NOW_MS + 1), Code.OFFER_IMPLAUSIBLE),
        (node_offer(1, issued_at_ms=NOW_MS + CLOCK_SKEW_MAX_MS + 1), Code.NOT_YET_VALID),
        (node_offer(1, incarnation_ms=0, issued_at_ms=NOW_MS - 300_000), Code.EXPIRED),
    ],
)
def test_lies_about_time_are_refused(offer: NodeOffer, code: Code) -> None:
    assert take(Intake(), sealed(1, offer).raw) is code


@pytest.mark.parametrize("shift_ms", [-CLOCK_SKEW_MAX_MS, CLOCK_SKEW_MAX_MS])
def test_a_clock_within_the_window_is_forgiven(shift_ms: int) -> None:
    offer = node_offer(1, issued_at_ms=NOW_MS + shift_ms)
    assert take(Intake(), sealed(1, offer).raw) is None


def test_another_kind_of_message_is_not_an_offer() -> None:
    raw = sealed(1, node_offer(1)).raw
    assert take(Intake(), raw.replace(b"node_offer", b"offer_node")) is Code.MALFORMED


def test_a_repeated_offer_costs_no_second_signature_check(checked: Checked) -> None:
    intake = Intake()
    raw = sealed(1, node_offer(1)).raw
    assert take(intake, raw) is None
    assert [take(intake, raw) for _ in range(10_000)] == [Code.REPLAYED] * 10_000
    assert checked.count == 1


def test_a_flood_of_changes_is_cut_before_the_signature_check(checked: Checked) -> None:
    intake = Intake()
    flood = [sealed(1, node_offer(1, sequence=n)).raw for n in range(200)]
    codes = [take(intake, raw) for raw in flood]
    assert codes[: OFFERS.burst] == [None] * OFFERS.burst
    assert set(codes[OFFERS.burst :]) == {Code.RATE_LIMITED}
    assert checked.count == OFFERS.burst
    assert take(intake, sealed(2, node_offer(2)).raw) is None, "others are not affected"
    later = sealed(1, node_offer(1, sequence=500)).raw
    assert take(intake, later, now_ms=NOW_MS + 5_000) is None, "and it recovers"


def test_forged_offers_are_charged_to_who_hands_them_on_and_not_to_the_victim(
    checked: Checked,
) -> None:
    intake = Intake()
    codes = [take(intake, forged(1, node_offer(1, sequence=n)), via=node(66)) for n in range(300)]
    assert codes.count(Code.BAD_SIGNATURE) == JUNK.burst == checked.count
    assert codes.count(Code.RATE_LIMITED) == 300 - JUNK.burst
    assert take(intake, sealed(1, node_offer(1)).raw, via=VIA) is None


def test_oversized_offers_count_as_junk(checked: Checked) -> None:
    intake = Intake()
    big = bytes(OFFER_BYTES_MAX + 1)
    codes = [take(intake, big) for _ in range(JUNK.burst + 1)]
    assert codes[-1] is Code.RATE_LIMITED
    assert checked.count == 0


def test_mutated_offers_never_raise_anything_but_a_typed_refusal() -> None:
    rng = random.Random(5)
    intake = Intake()
    raw = sealed(1, node_offer(1)).raw
    for attempt in range(500):
        mutated = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        if mutated != raw:
            assert take(intake, bytes(mutated), now_ms=NOW_MS + 1_000 * attempt) is not None


def test_a_signed_body_with_a_bad_field_is_malformed() -> None:
    body = encode(node_offer(1)).replace(b"\xa8sequence\x01", b"\xa8sequence\xff")
    signature = key(1).sign(b"capa/1/node_offer\0" + body)
    raw = msgpack.packb([1, "node_offer", key(1).public_key, body, signature])
    assert take(Intake(), raw) is Code.MALFORMED


def test_an_offer_on_another_topic_than_its_own_is_junk() -> None:
    intake, raw = Intake(), sealed(1, node_offer(1)).raw
    own = shard_of(node(1))
    with pytest.raises(RemoteProtocolError) as caught:
        intake.open(raw, now_ms=NOW_MS, via=VIA, topic=offer_topic((own + 1) % OFFER_SHARDS))
    assert caught.value.code is Code.WRONG_TOPIC
    assert intake.open(raw, now_ms=NOW_MS, via=VIA, topic=offer_topic(own)).signer == node(1)


def test_a_neighbour_has_a_budget_in_bytes(checked: Checked) -> None:
    intake = Intake()
    models = tuple(model_offer(name=f"m{n}", digest=Digest(f"{n:064x}")) for n in range(40))
    codes = [
        take(intake, sealed(number, replace(node_offer(number), models=models)).raw)
        for number in range(700)
    ]
    assert codes[0] is None
    assert codes[-1] is Code.RATE_LIMITED
    assert checked.count < 700

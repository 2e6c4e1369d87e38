import random
from dataclasses import replace

import pytest

from capanode.memory_ledger import (
    CONTEXT_BYTES,
    MemoryLedger,
    MemoryNeed,
    NoRoomError,
    place,
    promised_room,
)

MIB = 1024**2
GIB = 1024**3
UNLIKE = {"small-a": 12 * GIB, "small-b": 12 * GIB, "large": 24 * GIB}


def need(name: str, gib: float, *, cache_gib: float = 64) -> MemoryNeed:
    return MemoryNeed(
        name,
        weights_bytes=round(gib * GIB),
        workspace_bytes=GIB // 2,
        cache_min_bytes=GIB // 2 if cache_gib else 0,
        cache_max_bytes=round(cache_gib * GIB),
    )


def assert_sound(ledger: MemoryLedger, room: dict[str, int]) -> None:
    for device, total in room.items():
        promised = [made for made in ledger.promises.values() if device in made.devices]
        assert sum(made.bytes for made in promised) + ledger.left_bytes(device) == total
        assert ledger.left_bytes(device) >= 0


def test_a_lone_model_gets_the_largest_card_and_all_of_it() -> None:
    ledger, refused = place([need("m", 8)], UNLIKE)
    made = ledger.promises["m"]
    assert (made.device, refused) == ("large", {})
    assert made.cache_bytes > 14 * GIB
    assert ledger.left_bytes("large") <= MIB
    assert_sound(ledger, UNLIKE)


def test_models_go_where_they_fit_whatever_their_order() -> None:
    models = [need("tiny", 1), need("huge", 20), need("middle", 9)]
    for _ in range(5):
        random.Random(3).shuffle(models)
        ledger, refused = place(models, UNLIKE)
        assert refused == {}
        assert ledger.promises["huge"].device == "large"
        assert {ledger.promises[name].device for name in ("tiny", "middle")} == {
            "small-a",
            "small-b",
        }


def test_two_models_on_one_card_never_own_the_same_bytes() -> None:
    room = {"card": 24 * GIB}
    ledger, refused = place([need("a", 8), need("b", 4)], room)
    assert refused == {}
    first, second = ledger.promises["a"], ledger.promises["b"]
    assert first.bytes + second.bytes <= 24 * GIB
    # What is left goes by size, beyond the least of each.
    assert first.cache_bytes > second.cache_bytes > GIB
    assert_sound(ledger, room)


def test_a_model_without_a_cache_leaves_it_to_the_others() -> None:
    ledger, _ = place([need("chat", 8), need("embedder", 1, cache_gib=0)], {"card": 24 * GIB})
    assert ledger.promises["embedder"].cache_bytes == 0
    assert ledger.promises["chat"].cache_bytes > 11 * GIB


def test_a_model_that_is_full_leaves_its_share_to_the_others() -> None:
    ledger, _ = place([need("a", 4, cache_gib=1), need("b", 4)], {"card": 24 * GIB})
    assert ledger.promises["a"].cache_bytes == GIB
    assert ledger.promises["b"].cache_bytes > 11 * GIB


def test_a_model_without_room_is_refused_in_words_and_takes_nothing() -> None:
    ledger, refused = place([need("huge", 70), need("fits", 8)], UNLIKE)
    assert "huge" in refused
    assert "71.6 GiB" in str(refused["huge"])
    assert "24.0 GiB" in str(refused["huge"])
    assert set(ledger.promises) == {"fits"}


def test_without_a_device_nothing_is_promised() -> None:
    with pytest.raises(NoRoomError):
        MemoryLedger({}).promise(need("m", 1))


def test_memory_that_is_given_back_can_be_promised_again() -> None:
    ledger = MemoryLedger({"card": 12 * GIB})
    ledger.promise(need("a", 9))
    with pytest.raises(NoRoomError):
        ledger.promise(need("b", 9))
    ledger.release("a")
    ledger.release("a")
    assert ledger.promise(need("b", 9)).device == "card"
    with pytest.raises(ValueError, match="already"):
        ledger.promise(need("b", 1))


@pytest.mark.parametrize("seed", range(20))
def test_no_device_is_ever_promised_twice(seed: int) -> None:
    rng = random.Random(seed)
    room = {f"card-{number}": rng.randrange(4, 80) * GIB for number in range(rng.randrange(1, 5))}
    needs = [
        need(f"m{number}", rng.uniform(0.2, 40), cache_gib=rng.choice([0, 2, 500]))
        for number in range(rng.randrange(1, 9))
    ]
    ledger, refused = place(needs, room)
    assert_sound(ledger, room)
    assert set(ledger.promises) | set(refused) == {need.model for need in needs}
    for made in ledger.promises.values():
        assert made.bytes == made.allocated_bytes + CONTEXT_BYTES


def test_some_of_a_card_is_never_promised() -> None:
    assert 22 * GIB < promised_room(24 * GIB) < 24 * GIB


FOUR = {f"card-{number}": 24 * GIB for number in range(4)}


def test_a_model_on_several_cards_holds_the_same_of_each() -> None:
    large = replace(need("large", 40, cache_gib=64), devices_max=8)
    ledger, refused = place([large, need("small", 4)], FOUR, [list(FOUR)])
    assert refused == {}
    made = ledger.promises["large"]
    assert made.devices == ("card-0", "card-1")
    assert made.weights_bytes == 20 * GIB
    assert made.cache_bytes > 2 * GIB
    # It has both cards for itself, and leaves nothing of them.
    assert all(ledger.left_bytes(card) <= MIB for card in made.devices)
    assert ledger.promises["small"].device in {"card-2", "card-3"}
    assert_sound(ledger, FOUR)


def test_a_model_on_several_cards_leaves_those_beside_it_their_part() -> None:
    room = {"a": 24 * GIB, "b": 24 * GIB}
    large = replace(need("large", 30), devices_max=8)
    ledger, refused = place([large, need("beside", 3)], room, [["a", "b"]])
    assert refused == {}
    assert ledger.promises["beside"].cache_bytes > GIB // 2
    assert_sound(ledger, room)
    ledger.release("large")
    assert max(ledger.left_bytes("a"), ledger.left_bytes("b")) == 24 * GIB


def test_no_model_is_shared_by_unlike_cards_or_by_more_than_it_may() -> None:
    large = replace(need("large", 40), devices_max=8)
    _, refused = place([large], FOUR, [["card-0"], ["card-1"]])
    assert "GiB" in str(refused["large"])
    _, refused = place([replace(large, devices_max=1)], FOUR, [list(FOUR)])
    assert refused.keys() == {"large"}
    huge = replace(need("huge", 88), devices_max=2)
    _, refused = place([huge], FOUR, [list(FOUR)])
    assert refused.keys() == {"huge"}

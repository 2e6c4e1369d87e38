from protocol.limits import KIB, MIB
from protocol.net.buffers import Buffers, Holding


def open_holding(buffers: Buffers, block: str, dropped: list[str], name: str = "") -> Holding:
    return buffers.open(block, lambda: dropped.append(name or block))


def test_the_fullest_connection_of_the_fullest_block_is_dropped_at_the_bound() -> None:
    dropped: list[str] = []
    buffers = Buffers(bytes_max=10 * MIB)
    honest = open_holding(buffers, "honest", dropped)
    honest.change(4 * MIB)
    flood = [open_holding(buffers, "flood", dropped, f"flood {n}") for n in range(8)]
    for holding in flood:
        holding.change(MIB)
    assert dropped
    assert all(name.startswith("flood") for name in dropped)
    assert buffers.held_bytes <= 10 * MIB
    assert buffers.dropped == len(dropped)


def test_one_connection_has_a_bound_of_its_own() -> None:
    dropped: list[str] = []
    buffers = Buffers(bytes_max=100 * MIB, connection_bytes_max=2 * MIB)
    holding = open_holding(buffers, "a", dropped)
    holding.change(2 * MIB)
    assert dropped == []
    holding.change(1)
    assert dropped == ["a"]
    assert buffers.held_bytes == 0


def test_what_is_given_back_can_be_held_by_others() -> None:
    dropped: list[str] = []
    buffers = Buffers(bytes_max=MIB)
    holding = open_holding(buffers, "a", dropped)
    for _ in range(100):
        holding.change(900 * KIB)
        holding.change(-900 * KIB)
    other = open_holding(buffers, "b", dropped)
    other.change(800 * KIB)
    assert dropped == []


def test_many_small_frames_are_counted_as_well() -> None:
    dropped: list[str] = []
    buffers = Buffers(bytes_max=MIB)
    holding = open_holding(buffers, "a", dropped)
    for _ in range(MIB // 128 + 1):
        holding.change(128)
    assert dropped == ["a"]


def test_a_closed_connection_holds_nothing() -> None:
    dropped: list[str] = []
    buffers = Buffers(bytes_max=MIB)
    holding = open_holding(buffers, "a", dropped)
    holding.change(900 * KIB)
    holding.close()
    holding.change(10 * MIB)
    assert buffers.held_bytes == 0
    assert dropped == []

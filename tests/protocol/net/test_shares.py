import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.net.shares import Shares, block_of


@pytest.mark.parametrize(
    ("host", "block"),
    [
        ("203.0.113.7", "203.0.113.0/24"),
        ("203.0.113.250", "203.0.113.0/24"),
        ("::ffff:203.0.113.7", "203.0.113.0/24"),
        ("2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("Example.org", "example.org"),
        ("", ""),
    ],
)
def test_an_address_belongs_to_the_block_of_one_subscriber(host: str, block: str) -> None:
    assert block_of(host) == block


def test_a_newcomer_takes_a_place_of_the_largest_group() -> None:
    shares: Shares[int] = Shares(4)
    for member in range(4):
        assert shares.make_room("flood") == []
        shares.add(member, "flood")
    assert shares.make_room("lone") == [0]
    shares.add(9, "lone")
    assert 9 in shares
    assert len(shares) == 4


def test_a_flood_is_refused_while_its_own_members_are_in_use() -> None:
    shares: Shares[int] = Shares(2)
    shares.add(1, "flood")
    shares.add(2, "flood")
    assert shares.make_room("flood") is None
    assert len(shares) == 2


def test_a_spare_member_gives_way_within_its_own_group() -> None:
    idle_since = {1: 5.0, 2: 1.0, 3: 9.0}
    shares: Shares[int] = Shares(3, rank=idle_since.__getitem__, is_spare=lambda m: m != 3)
    for member in idle_since:
        shares.add(member, "loopback")
    assert shares.make_room("loopback") == [2]


def test_a_newcomer_among_groups_of_one_gets_the_place_of_a_spare_one_only() -> None:
    idle: set[int] = set()
    shares: Shares[int] = Shares(3, is_spare=idle.__contains__)
    for member in range(3):
        shares.add(member, f"block {member}")
    assert shares.make_room("another") is None
    idle.add(0)
    assert shares.make_room("another") == [0]


def test_a_large_newcomer_makes_several_members_end_or_none() -> None:
    shares: Shares[str] = Shares(100)
    for name in "abcde":
        shares.add(name, "flood", 20)
    assert shares.make_room("lone", 30) == ["a", "b"]
    shares.add("x", "lone", 30)
    assert shares.make_room("lone", 60) is None
    assert [name in shares for name in "cdex"] == [True] * 4
    assert shares.size == 90


def test_sizes_may_change_later() -> None:
    shares: Shares[str] = Shares(100, rank=None)
    shares.add("a", "one", 10)
    shares.add("b", "two", 50)
    shares.resize("a", 90)
    assert shares.heaviest() == "a"
    shares.remove("a")
    shares.remove("a")
    shares.resize("a", 5)
    assert (shares.size, shares.heaviest()) == (50, "b")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 5)), max_size=200)
)
def test_the_books_of_shares_are_those_of_a_plain_sum(
    steps: list[tuple[str, int, int]],
) -> None:
    shares: Shares[int] = Shares(20)
    model: dict[int, tuple[str, int]] = {}
    for group, member, size in steps:
        if member in model:
            shares.remove(member)
            del model[member]
            continue
        ended = shares.make_room(group, size)
        if ended is None:
            continue
        for each in ended:
            del model[each]
        shares.add(member, group, size)
        model[member] = (group, size)
        assert shares.size == sum(s for _, s in model.values()) <= 20
        for name in "abc":
            assert shares.size_of(name) == sum(s for g, s in model.values() if g == name)
        assert len(shares) == len(model)

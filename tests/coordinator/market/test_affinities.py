"""Which node ran how an input begins."""

from coordinator.market.affinities import Affinities
from tests.coordinator.market_makers import node

ONE, TWO, SYSTEM = b"1" * 16, b"2" * 16, b"s" * 16


def test_the_longest_beginning_that_is_known_decides() -> None:
    known = Affinities()
    known.note(node(1), (ONE, SYSTEM), node(10))
    known.note(node(1), (TWO, SYSTEM), node(20))
    assert known.find(node(1), (ONE, SYSTEM)) == node(10)
    assert known.find(node(1), (b"3" * 16, SYSTEM)) == node(20)
    assert known.find(node(1), (b"3" * 16,)) is None
    assert known.find(node(1), ()) is None


def test_keys_of_two_clients_have_nothing_to_do_with_each_other() -> None:
    known = Affinities()
    known.note(node(1), (ONE,), node(10))
    assert known.find(node(2), (ONE,)) is None


def test_the_key_longest_unused_is_forgotten() -> None:
    known = Affinities(keys_max=2)
    known.note(node(1), (ONE,), node(10))
    known.note(node(1), (TWO,), node(10))
    known.note(node(1), (ONE,), node(10))
    known.note(node(1), (SYSTEM,), node(10))
    assert known.find(node(1), (ONE,)) == node(10)
    assert known.find(node(1), (TWO,)) is None

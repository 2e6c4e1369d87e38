"""Two processes with one key, by what their control lines say."""

from coordinator.leasing.twins import HEARD_WITHIN_S, INCARNATIONS_MAX, LAST_WORDS_S, Twins
from tests.protocol.makers import NODE

KEY = NODE.peer_id


def test_a_node_that_restarts_is_one() -> None:
    twins = Twins()
    for second in range(10):
        twins.hear(KEY, 1, now=second)
    for second in range(10, 30):
        twins.hear(KEY, 2, now=second)
        assert not twins.are_two(KEY, now=second)


def test_last_words_that_are_read_late_make_no_twin() -> None:
    twins = Twins()
    twins.hear(KEY, 2, now=10)
    twins.hear(KEY, 1, now=10 + LAST_WORDS_S)
    assert not twins.are_two(KEY, now=12)


def test_an_earlier_process_that_goes_on_is_a_twin_until_one_falls_silent() -> None:
    twins = Twins()
    twins.hear(KEY, 2, now=10)
    twins.hear(KEY, 1, now=13)
    assert twins.are_two(KEY, now=13)
    assert twins.is_heard(KEY, 2, now=13)
    for second in range(15, 40):
        twins.hear(KEY, 1, now=second)
    assert not twins.are_two(KEY, now=40)
    assert not twins.is_heard(KEY, 2, now=40)
    assert twins.is_heard(KEY, 1, now=39 + HEARD_WITHIN_S)


def test_nodes_are_told_apart_and_forgotten() -> None:
    twins = Twins()
    twins.hear(KEY, 1, now=0)
    twins.forget(KEY)
    twins.forget(KEY)
    assert not twins.is_heard(KEY, 1, now=0)


def test_a_node_cannot_make_its_record_grow() -> None:
    twins = Twins()
    for incarnation in range(100):
        twins.hear(KEY, incarnation, now=incarnation)
    heard = [n for n in range(100) if twins.is_heard(KEY, n, now=99)]
    assert heard == list(range(100 - INCARNATIONS_MAX, 100))

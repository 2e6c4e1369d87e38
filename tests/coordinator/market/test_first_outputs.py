"""What a node's first outputs usually take at most."""

from coordinator.market.first_outputs import LATEST_MAX, LATEST_MIN, FirstOutputs
from tests.coordinator.market_makers import MODEL, node


def test_it_is_known_after_some_and_follows_the_latest() -> None:
    outputs = FirstOutputs()
    for number in range(LATEST_MIN - 1):
        outputs.note(node(0), MODEL, number)
    assert outputs.usual_most(node(0), MODEL) is None
    outputs.note(node(0), MODEL, 1_000.0)
    # One in twenty took longer.
    assert outputs.usual_most(node(0), MODEL) == LATEST_MIN - 2
    assert outputs.usual_most(node(1), MODEL) is None
    for _ in range(LATEST_MAX):
        outputs.note(node(0), MODEL, 2.0)
    assert outputs.usual_most(node(0), MODEL) == 2.0

"""How descriptors are shared out among the network, an HTTP server, and all that is ours."""

import pytest

from protocol.net.descriptors import RESERVED, network_descriptors, server_descriptors


@pytest.mark.parametrize("limit", [1_024, 4_096, 1_048_576])
def test_strangers_on_both_sides_together_leave_what_is_reserved(limit: int) -> None:
    taken = network_descriptors(limit) + server_descriptors(limit)
    assert taken <= limit - RESERVED
    assert server_descriptors(limit) >= network_descriptors(limit)


def test_a_very_low_limit_leaves_a_few_places_on_each_side() -> None:
    assert network_descriptors(64) == server_descriptors(64) == 16

"""How descriptors are divided between the network, HTTP, and what a process itself needs."""

import pytest

from protocol.net.descriptors import RESERVED, http_descriptors, network_descriptors


@pytest.mark.parametrize("limit", [512, 1_024, 20_000, 2**20])
def test_strangers_never_get_the_descriptors_that_the_process_itself_needs(limit: int) -> None:
    """Idle HTTP connections took all of them, and a coordinator could accept no node any more."""
    assert network_descriptors(limit) + http_descriptors(limit) <= limit - RESERVED
    assert http_descriptors(limit) > 0

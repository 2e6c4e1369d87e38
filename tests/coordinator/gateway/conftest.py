"""The harness as a fixture."""

from collections.abc import Iterator

import pytest

from tests.coordinator.gateway.harness import Harness, harness


@pytest.fixture
def gateway() -> Iterator[Harness]:
    with harness() as running:
        yield running

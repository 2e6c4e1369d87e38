"""A scripted market behind a real HTTP server, for clients in other processes."""

from collections.abc import Iterator

import pytest

from tests.integration.openai_api import Served, served_gateway


@pytest.fixture
def served() -> Iterator[Served]:
    with served_gateway() as running:
        yield running

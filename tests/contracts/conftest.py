"""A deployment for each test: made once, and undone after every test."""

from collections.abc import Iterator

import pytest

from tests.contracts.evm import Evm
from tests.contracts.market import Market, Person


@pytest.fixture(scope="session")
def fresh_market() -> Market:
    return Market(Evm())


@pytest.fixture
def market(fresh_market: Market) -> Iterator[Market]:
    with fresh_market.evm.anchored():
        yield fresh_market


@pytest.fixture
def client(market: Market) -> Person:
    return market.person("client")


@pytest.fixture
def operator(market: Market) -> Person:
    """With a stake of 1,000: it may redeem 500 before it has to post a root."""
    operator = market.person("operator")
    market.do(operator, market.calls.stake(1_000))
    return operator


@pytest.fixture
def payee(market: Market) -> Person:
    return market.person("payee")


@pytest.fixture
def other(market: Market) -> Person:
    return market.person("other")

"""A deployment for each test: made once, and undone after every test."""

import sys
from collections.abc import Iterator

import pytest

RECURSION_LIMIT = sys.getrecursionlimit()
import eth_account  # noqa: E402, F401

# eth-account, an oracle in these tests, raises the limit for the whole process (py_ecc does). Other
# packages' tests feed deeply nested JSON to a parser that relies on the limit.
sys.setrecursionlimit(RECURSION_LIMIT)

from tests.contracts.evm import Evm  # noqa: E402
from tests.contracts.market import Market, Person  # noqa: E402


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


@pytest.fixture
def funded(market: Market, client: Person, operator: Person) -> Person:
    """The operator, with a credit of 300."""
    market.deposit(client, operator, 1_000)
    market.redeem(client, operator, 300)
    return operator

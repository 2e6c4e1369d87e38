"""What these tests bring into the process must not change it for the tests of other packages."""

import json
import sys

import pytest

from tests.contracts.conftest import RECURSION_LIMIT
from tests.contracts.evm import Evm


def test_neither_the_evm_nor_the_oracles_raise_the_recursion_limit() -> None:
    """Both would, to 100,000; a parser of nested JSON then overflows the C stack of the process."""
    Evm()
    assert {"boa", "eth_account"} <= sys.modules.keys()
    assert sys.getrecursionlimit() == RECURSION_LIMIT
    with pytest.raises(RecursionError):
        json.loads("[" * 200_000)

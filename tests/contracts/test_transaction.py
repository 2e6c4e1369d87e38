"""Transactions against eth-account's, byte for byte; and what importing the client must not do."""

import subprocess
import sys
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.build import ROOT
from contracts.transaction import Transaction, parse_transaction, transaction_hash
from contracts.units import Address, address_from_bytes
from tests.contracts.keys import make_key

KEY = make_key("sender")
numbers = st.integers(0, 2**64 - 1)
addresses = st.none() | st.binary(min_size=20, max_size=20).map(address_from_bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2**63), numbers, numbers, numbers, numbers, addresses, st.binary(max_size=200)
)
def test_transactions_are_what_everyone_else_signs(
    chain_id: int, nonce: int, tip: int, fee: int, gas: int, to: Address | None, data: bytes
) -> None:
    ours = Transaction(chain_id, nonce, tip, fee, gas, to, data)
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "maxPriorityFeePerGas": tip,
        "maxFeePerGas": fee,
        "gas": gas,
        "value": 0,
        "data": data,
    }
    theirs = Account.sign_transaction(fields | ({"to": to} if to else {}), KEY.secret())
    raw = ours.sign(KEY)
    assert raw == theirs.raw_transaction
    assert transaction_hash(raw) == "0x" + theirs.hash.hex()
    assert parse_transaction(raw) == (ours, KEY.address)


@pytest.mark.parametrize("raw", [b"", b"\x02\xc0", b"\x01\xc0"])
def test_what_is_no_transaction_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="type 2"):
        parse_transaction(raw)


def test_importing_the_client_leaves_the_recursion_limit_alone() -> None:
    """With a limit of 100,000, nested JSON from a stranger overflows the C stack of the gateway."""
    program = "import sys; before = sys.getrecursionlimit()\n"
    for path in sorted((ROOT / "contracts").glob("*.py")):
        if path.stem not in ("__main__", "build"):
            program += f"import contracts.{path.stem}\n"
    program += "assert sys.getrecursionlimit() == before, sys.getrecursionlimit()"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

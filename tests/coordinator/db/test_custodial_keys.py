"""Sealed keys: kept as they are given, one an account."""

import pytest

from coordinator.db.custodial_keys import find_custodial_key, store_custodial_key
from coordinator.errors import ConstraintError
from coordinator.ledger.accounts import AccountId
from tests.coordinator.ledger_makers import ALICE, BOB, START_MS, memory_books

ALICES, BOBS = AccountId(ALICE), AccountId(BOB)


def test_a_sealed_key_is_found_by_its_account_and_never_replaced() -> None:
    with memory_books() as database:
        with database.transaction() as conn:
            store_custodial_key(conn, ALICES, b"\x00sealed\xff", now_ms=START_MS)
            assert find_custodial_key(conn, ALICES) == b"\x00sealed\xff"
            assert find_custodial_key(conn, BOBS) is None
        with pytest.raises(ConstraintError), database.transaction() as conn:
            store_custodial_key(conn, ALICES, b"another", now_ms=START_MS)
        with database.transaction() as conn:
            assert find_custodial_key(conn, ALICES) == b"\x00sealed\xff"

"""The hash chain as the ledger's page describes it, computed here without our own code."""

import hashlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from coordinator.ledger.accounts import AccountId
from coordinator.ledger.hash_chain import GENESIS, next_hash, sign_head
from coordinator.ledger.transfers import Transfer, TransferCode, TransferKind
from protocol.ids import JobId, TransferId
from protocol.keys import SigningKey

TRANSFER = Transfer(
    TransferId("01JBRT5F0G0000000000000001"),
    AccountId("client"),
    AccountId("escrow"),
    1_234,
    TransferKind.POST,
    TransferCode.CAPTURE,
    pending_id=TransferId("01JBRT5F0G0000000000000002"),
    timeout_at_ms=None,
    job_id=JobId("01JBRT5F0G0000000000000003"),
)
PREVIOUS = hashlib.sha256(b"what came before").digest()


def test_a_hash_covers_the_one_before_and_each_field_in_the_documented_order() -> None:
    fields = [
        *(7, 1_700_000_000_000_000_000, "01JBRT5F0G0000000000000001", "client", "escrow", 1_234),
        *("post", "capture", "01JBRT5F0G0000000000000002", None, "01JBRT5F0G0000000000000003"),
    ]
    by_hand = hashlib.sha256(PREVIOUS + msgpack.packb(fields)).digest()
    assert next_hash(PREVIOUS, 7, 1_700_000_000_000_000_000, TRANSFER) == by_hand
    assert hashlib.sha256(b"capa/1/ledger").digest() == GENESIS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", TransferId("01JBRT5F0G0000000000000009")),
        ("debit", "another"),
        ("credit", "another"),
        ("amount_nano", 1_235),
        ("kind", TransferKind.VOID),
        ("code", TransferCode.RELEASE),
        ("pending_id", None),
        ("timeout_at_ms", 1),
        ("job_id", None),
    ],
)
def test_no_field_of_a_transfer_can_change_without_its_hash(field: str, value: Any) -> None:
    changed = TRANSFER._replace(**{field: value})
    assert next_hash(PREVIOUS, 7, 8, changed) != next_hash(PREVIOUS, 7, 8, TRANSFER)


def test_neither_can_its_place_or_what_came_before() -> None:
    here = next_hash(PREVIOUS, 7, 8, TRANSFER)
    assert next_hash(GENESIS, 7, 8, TRANSFER) != here
    assert next_hash(PREVIOUS, 6, 8, TRANSFER) != here
    assert next_hash(PREVIOUS, 7, 9, TRANSFER) != here


def test_a_head_is_signed_for_its_own_values_only() -> None:
    key = SigningKey(b"\1" * 32)
    head = sign_head(key, sequence=7, chain_hash=PREVIOUS, signed_at_ms=9)
    assert head.is_signed
    others = ({"sequence": 8}, {"chain_hash": GENESIS}, {"signed_at_ms": 10})
    assert not any(replace(head, **change).is_signed for change in others)
    assert not replace(head, signer=SigningKey(b"\2" * 32).peer_id).is_signed

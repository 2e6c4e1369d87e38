"""The tree against a straightforward second construction, its proofs, and its speed."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import BadProofError
from contracts.keccak import keccak, keccak_rows
from contracts.merkle_sum import EMPTY_ROOT, SUM_MAX, SumNode, SumTree, check_leaf
from contracts.units import Address, address_bytes, address_from_bytes

OPERATOR = address_from_bytes(b"\x11" * 20)


def payee(number: int) -> Address:
    return address_from_bytes(keccak(number.to_bytes(8)))


def plain_root(earnings: dict[Address, int]) -> tuple[bytes, int]:
    """The tree as its definition says it, one hash at a time."""
    level = [
        (
            keccak(b"\0" + address_bytes(OPERATOR) + address_bytes(p) + earnings[p].to_bytes(32)),
            earnings[p],
        )
        for p in sorted(earnings, key=address_bytes)
    ]
    while len(level) > 1:
        level += [(bytes(32), 0)] * (len(level) % 2)
        level = [
            (keccak(b"\1" + lh + ls.to_bytes(32) + rh + rs.to_bytes(32)), ls + rs)
            for (lh, ls), (rh, rs) in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 600])
def test_the_tree_is_what_its_definition_says(count: int) -> None:
    earnings = {payee(i): i * 7 for i in range(count)}
    tree = SumTree(OPERATOR, earnings)
    assert (tree.root, tree.total) == plain_root(earnings)
    assert len(tree) == count
    for who in list(earnings)[:: max(1, count // 20)]:
        check_leaf(tree.root, tree.total, OPERATOR, tree.leaf(who))


def test_an_empty_tree_has_a_root_that_proves_nothing() -> None:
    tree = SumTree(OPERATOR, {})
    assert (tree.root, tree.total) == (EMPTY_ROOT, 0)
    with pytest.raises(KeyError):
        tree.leaf(payee(1))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.binary(min_size=20, max_size=20), st.integers(0, SUM_MAX // 64), min_size=2, max_size=40
    ),
    st.data(),
)
def test_a_changed_proof_does_not_hold(raw: dict[bytes, int], data: st.DataObject) -> None:
    earnings = {address_from_bytes(key): amount for key, amount in raw.items()}
    tree = SumTree(OPERATOR, earnings)
    leaf = tree.leaf(data.draw(st.sampled_from(sorted(earnings))))
    check_leaf(tree.root, tree.total, OPERATOR, leaf)
    level = data.draw(st.integers(0, len(leaf.proof) - 1))
    node = leaf.proof[level]
    wrong_node = data.draw(
        st.sampled_from([replace(node, sum=node.sum + 1), replace(node, hash=keccak(node.hash))])
    )
    proof = (*leaf.proof[:level], wrong_node, *leaf.proof[level + 1 :])
    for wrong in (
        replace(leaf, proof=proof),
        replace(leaf, cumulative=leaf.cumulative + 1),
        replace(leaf, index=leaf.index ^ 1),
        replace(leaf, index=leaf.index + (1 << len(leaf.proof))),
        replace(leaf, proof=leaf.proof[:-1]),
        replace(leaf, payee=OPERATOR),
    ):
        with pytest.raises(BadProofError):
            check_leaf(tree.root, tree.total, OPERATOR, wrong)


def test_a_leaf_that_the_contract_cannot_take_does_not_hold() -> None:
    """It comes from an operator: whatever stands in it, it is refused by name."""
    tree = SumTree(OPERATOR, {payee(1): 5, payee(2): 7})
    leaf = tree.leaf(payee(1))
    for wrong in (
        replace(leaf, cumulative=-1),
        replace(leaf, cumulative=2**256),
        replace(leaf, index=-1),
        replace(leaf, proof=(SumNode(leaf.proof[0].hash, -7),)),
        replace(leaf, proof=(SumNode(leaf.proof[0].hash, SUM_MAX + 1),)),
        replace(leaf, proof=leaf.proof * 100_000),
    ):
        with pytest.raises(BadProofError):
            check_leaf(tree.root, tree.total, OPERATOR, wrong)


@pytest.mark.parametrize("amount", [-1, SUM_MAX + 1])
def test_amounts_that_the_contract_cannot_take_are_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        SumTree(OPERATOR, {payee(1): amount})


@pytest.mark.parametrize("length", [0, 73, 129, 135])
def test_hashing_many_rows_is_hashing_each(length: int) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (300, length), np.uint8)
    assert [row.tobytes() for row in keccak_rows(rows)] == [keccak(r.tobytes()) for r in rows]


def test_rows_longer_than_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        keccak_rows(np.zeros((1, 136), np.uint8))


@pytest.mark.slow
def test_a_hundred_thousand_leaves_take_two_seconds_of_processor_time() -> None:
    """On a machine that hashes a message in 5.5 µs; elsewhere, as many times its own hash.

    Neighbours can slow a processor down in the middle, so the best of a few rounds counts.
    """
    earnings = {Address(f"0x{number:040x}"): number for number in range(1, 100_001)}
    for _ in range(4):
        times = [time.process_time()]
        tree = SumTree(OPERATOR, earnings)
        times.append(time.process_time())
        for number in range(20_000):
            keccak(number.to_bytes(129))
        times.append(time.process_time())
        tree_s, hash_s = times[1] - times[0], (times[2] - times[1]) / 20_000
        print(f"100,000 leaves: {tree_s:.2f} s, one hash: {hash_s * 1e6:.1f} µs")
        if tree_s <= 2 * hash_s / 5.5e-6:
            break
    else:
        pytest.fail(f"{tree_s:.2f} s")
    last = Address(f"0x{100_000:040x}")
    check_leaf(tree.root, tree.total, OPERATOR, tree.leaf(last))

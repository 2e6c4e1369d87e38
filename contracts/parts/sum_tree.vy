# pragma version 0.4.3
"""
@title Merkle sum tree
@license Apache-2.0
@notice A root commits to a list of (payee, cumulative earnings) and to their exact sum, so no leaf
        can be inflated without another one missing.
@dev leaf = keccak(0x00, operator, payee, cumulative); node = keccak(0x01, left hash, left sum, right hash,
     right sum). Both children's sums are hashed: hashing only their total would let two different
     splits share a parent. The prefix keeps a node from being passed off as a leaf.
"""

# 2^24 payees are more than one operator will ever have, and every proof in calldata fits 48 words.
DEPTH_MAX: constant(uint256) = 24


struct Node:
    hash: bytes32
    # 24 additions of 128-bit sums stay inside 256 bits, so folding cannot overflow.
    sum: uint128


@internal
@pure
def _holds(
    root: bytes32,
    total: uint256,
    operator: address,
    payee: address,
    cumulative: uint256,
    index: uint256,
    proof: DynArray[Node, DEPTH_MAX],
) -> bool:
    """
    @dev Whether the leaf (payee, cumulative) stands at `index` under (root, total).
    """
    if cumulative > total:
        return False
    digest: bytes32 = keccak256(
        concat(
            b"\x00",
            convert(operator, bytes20),
            convert(payee, bytes20),
            convert(cumulative, bytes32),
        )
    )
    sum: uint256 = cumulative
    path: uint256 = index
    for node: Node in proof:
        sibling_sum: uint256 = convert(node.sum, uint256)
        if path & 1 == 0:
            digest = self._parent(digest, sum, node.hash, sibling_sum)
        else:
            digest = self._parent(node.hash, sibling_sum, digest, sum)
        sum = unsafe_add(sum, sibling_sum)
        path >>= 1
    return path == 0 and digest == root and sum == total


@internal
@pure
def _parent(
    left: bytes32, left_sum: uint256, right: bytes32, right_sum: uint256
) -> bytes32:
    return keccak256(
        concat(b"\x01", left, convert(left_sum, bytes32), right, convert(right_sum, bytes32))
    )

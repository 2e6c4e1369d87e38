# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Payouts
@license Apache-2.0
@notice How payees are paid: from the active root, or, if roots stop, pro rata by what they were promised.
@dev The leaves of a root share its total, and those who filed promises share the estate. Neither can
     reach the other's money, nor what was redeemed and not rooted yet.
"""

from contracts.parts import books
from contracts.parts import limits
from contracts.parts import signatures
from contracts.parts import sum_tree
from contracts.parts import vault

uses: books
uses: limits
uses: vault

event Claimed:
    operator: indexed(address)
    payee: indexed(address)
    amount: uint256
    cumulative: uint256

event DeclaredStale:
    operator: indexed(address)
    reserve: uint256
    burned: uint256

event Filed:
    operator: indexed(address)
    payee: indexed(address)
    weight: uint256

event StaleClaimed:
    operator: indexed(address)
    payee: indexed(address)
    amount: uint256
    weight: uint256

event RemainderClaimed:
    operator: indexed(address)
    amount: uint256

struct Claim:
    payee: address
    cumulative: uint256
    index: uint256
    proof: DynArray[sum_tree.Node, sum_tree.DEPTH_MAX]

struct Estate:
    # What a stale operator leaves to those whom no active root covers, and what is still there of it.
    reserve: uint256
    left: uint256
    # The sum of what they have filed.
    weight: uint256

CLAIMS_MAX: constant(uint256) = 32

# A promise beyond all money there is would only serve to overflow the division.
PROMISE_MAX: constant(uint256) = 2**128 - 1

# @notice What a stale operator left, and how much was filed against it.
estates: public(HashMap[address, Estate])

# @notice What (operator, payee) filed and was not paid yet.
weights: public(HashMap[address, HashMap[address, uint256]])


@external
def claim(
    operator: address,
    payee: address,
    cumulative: uint256,
    index: uint256,
    proof: DynArray[sum_tree.Node, sum_tree.DEPTH_MAX],
) -> uint256:
    """
    @notice Pay a payee what the active root holds for it beyond what it was paid; anyone may call.
            A leaf that was paid already pays nothing. Closed from the middle of a pending root's window
            until that root is final or cancelled; for who has filed, between the end of the collection
            and `claim_stale`.
    @param operator Whose root pays.
    @param payee Who is paid.
    @param cumulative The leaf's cumulative earnings.
    @param index The leaf's position.
    @param proof The leaf's siblings, from the bottom.
    @return The amount that was sent.
    """
    self._check_open(operator)
    return self._claim(
        operator, Claim(payee=payee, cumulative=cumulative, index=index, proof=proof)
    )


@external
def claim_many(operator: address, claims: DynArray[Claim, CLAIMS_MAX]) -> uint256:
    """
    @notice Pay several payees at once.
    @param operator Whose root pays.
    @param claims A leaf and its proof for each.
    @return The amount that was sent in all.
    """
    assert len(claims) > 0, "claim: empty"
    self._check_open(operator)
    amount: uint256 = 0
    for item: Claim in claims:
        amount += self._claim(operator, item)
    return amount


@external
def declare_stale(operator: address):
    """
    @notice Close an operator that has not posted a final root for too long; anyone may, and it is for
            ever. Half of the stake is burned, as after a lost challenge. The other half and everything
            redeemed but not in the active root is left to those who file promises.
    @param operator Whose roots stopped.
    """
    state: books.Operator = books.operators[operator]
    active_total: uint256 = books.active_root[operator].total
    assert state.stale_at == 0, "stale: declared"
    assert books.pending_root[operator].epoch == 0, "stale: root pending"
    assert state.stake > 0 or state.credit > active_total, "stale: nothing at stake"
    assert block.timestamp >= state.fresh_at + limits.STALE_AFTER_S, "stale: too soon"
    burned: uint256 = state.stake - state.stake // 2
    # What the active root shares out stays with its leaves: it is paid by `claim`, not from here.
    reserve: uint256 = state.credit - active_total + state.stake // 2
    books.operators[operator].stale_at = block.timestamp
    books.operators[operator].stake = 0
    books.operators[operator].credit = active_total
    self.estates[operator] = Estate(reserve=reserve, left=reserve, weight=0)
    log DeclaredStale(operator=operator, reserve=reserve, burned=burned)
    vault._burn(burned)


@external
def file_promise(
    operator: address,
    payee: address,
    epoch: uint256,
    cumulative: uint256,
    signature: Bytes[signatures.SIGNATURE_BYTES],
) -> uint256:
    """
    @notice Register what a stale operator promised to a payee beyond what it was paid; anyone may.
            Claim the active root's leaf first: until then it counts here, and dilutes everyone.
    @param operator The stale operator.
    @param payee Who was promised.
    @param epoch The promise's epoch, whichever it is.
    @param cumulative The promised cumulative earnings; a higher promise replaces a lower one.
    @param signature The operator's signature of the promise.
    @return The payee's weight in the division.
    """
    stale_at: uint256 = books.operators[operator].stale_at
    assert stale_at > 0, "file: not stale"
    assert block.timestamp < stale_at + limits.COLLECTION_S, "file: too late"
    paid: uint256 = books.paid[operator][payee]
    before: uint256 = self.weights[operator][payee]
    assert cumulative > paid + before, "file: not more"
    assert cumulative <= PROMISE_MAX, "file: too much"
    digest: bytes32 = signatures._promise_digest(operator, payee, epoch, cumulative)
    assert signatures._is_signed_by_key(operator, digest, signature), "file: not signed"
    self.weights[operator][payee] = cumulative - paid
    self.estates[operator].weight += cumulative - paid - before
    log Filed(operator=operator, payee=payee, weight=cumulative - paid)
    return cumulative - paid


@external
def claim_stale(operator: address, payee: address) -> uint256:
    """
    @notice Pay a payee its share of what a stale operator left: all that it filed, or pro rata if more
            was filed than there is. Anyone may call, once the collection is over.
    @param operator The stale operator.
    @param payee Who is paid.
    @return The amount that was sent.
    """
    estate: Estate = self._closed_estate(operator)
    weight: uint256 = self.weights[operator][payee]
    assert weight > 0, "stale: nothing filed"
    share: uint256 = weight
    if estate.weight > estate.reserve:
        share = weight * estate.reserve // estate.weight
    self.weights[operator][payee] = 0
    amount: uint256 = self._take(operator, share)
    books.paid[operator][payee] += amount
    log StaleClaimed(operator=operator, payee=payee, amount=amount, weight=weight)
    if amount > 0:
        vault._send(payee, amount)
    return amount


@external
def claim_remainder(operator: address) -> uint256:
    """
    @notice Give back to a stale operator what nobody filed for. Anyone may call, once the collection
            is over.
    @param operator The stale operator.
    @return The amount that was sent.
    """
    estate: Estate = self._closed_estate(operator)
    assert estate.reserve > estate.weight, "stale: no remainder"
    self.estates[operator].reserve = estate.weight
    # It is not earned, so it does not count as paid: the operator's own leaf stays good.
    amount: uint256 = self._take(operator, estate.reserve - estate.weight)
    log RemainderClaimed(operator=operator, amount=amount)
    vault._send(operator, amount)
    return amount


@internal
@view
def _closed_estate(operator: address) -> Estate:
    stale_at: uint256 = books.operators[operator].stale_at
    assert stale_at > 0, "stale: not declared"
    assert block.timestamp >= stale_at + limits.COLLECTION_S, "stale: collecting"
    return self.estates[operator]


@internal
@view
def _check_open(operator: address):
    """
    @dev Whoever is paid under the old root may be missing from the pending one, whose sum then has room
         for the same money again. So payments stop while there is still half a window to object.
    """
    posted_at: uint256 = books.pending_root[operator].posted_at
    assert (
        posted_at == 0 or block.timestamp < posted_at + limits.WINDOW_S // 2
    ), "claim: root pending"


@internal
def _claim(operator: address, item: Claim) -> uint256:
    root: bytes32 = books.active_root[operator].root
    total: uint256 = books.active_root[operator].total
    assert sum_tree._holds(
        root, total, operator, item.payee, item.cumulative, item.index, item.proof
    ), "claim: bad proof"
    paid: uint256 = books.paid[operator][item.payee]
    if item.cumulative <= paid:
        return 0
    claimed: uint256 = books.operators[operator].claimed
    # Less is due only if nobody objected to a root that forgot what was paid.
    amount: uint256 = min(item.cumulative - paid, total - claimed)
    if amount == 0:
        return 0
    books.operators[operator].claimed = claimed + amount
    books.paid[operator][item.payee] = paid + amount
    self._lighten(operator, item.payee, amount)
    log Claimed(
        operator=operator, payee=item.payee, amount=amount, cumulative=item.cumulative
    )
    vault._send(item.payee, amount)
    return amount


@internal
def _lighten(operator: address, payee: address, amount: uint256):
    """
    @dev What a leaf pays during the collection is no longer owed by the estate. After it the division
         stands, so the share comes before the leaf: else whoever called first would decide whether
         the payee gets the larger of the two, or both.
    """
    stale_at: uint256 = books.operators[operator].stale_at
    if stale_at == 0:
        return
    weight: uint256 = self.weights[operator][payee]
    if block.timestamp >= stale_at + limits.COLLECTION_S:
        assert weight == 0, "claim: claim_stale first"
        return
    less: uint256 = min(amount, weight)
    self.weights[operator][payee] = weight - less
    self.estates[operator].weight -= less


@internal
def _take(operator: address, due: uint256) -> uint256:
    """
    @dev Out of the estate, never more than is left in it.
    """
    left: uint256 = self.estates[operator].left
    amount: uint256 = min(due, left)
    self.estates[operator].left = left - amount
    return amount

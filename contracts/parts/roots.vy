# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Roots
@license Apache-2.0
@notice The operator's leg: one root of cumulative earnings per epoch, which any payee that holds a
        signed promise can challenge before it pays.
"""

from contracts.parts import books
from contracts.parts import limits
from contracts.parts import signatures
from contracts.parts import sum_tree
from contracts.parts import vault

uses: books
uses: limits
uses: vault

event RootPosted:
    operator: indexed(address)
    epoch: indexed(uint256)
    root: bytes32
    total: uint256
    ledger_root: bytes32

event RootFinal:
    operator: indexed(address)
    epoch: indexed(uint256)
    total: uint256

event RootCancelled:
    operator: indexed(address)
    epoch: indexed(uint256)

event Challenged:
    operator: indexed(address)
    epoch: indexed(uint256)
    payee: indexed(address)
    challenger: address
    cumulative: uint256

event Responded:
    operator: indexed(address)
    epoch: indexed(uint256)
    payee: indexed(address)
    cumulative: uint256

event Slashed:
    operator: indexed(address)
    challenger: indexed(address)
    bounty: uint256
    burned: uint256

event BondReclaimed:
    operator: indexed(address)
    epoch: indexed(uint256)
    payee: indexed(address)
    challenger: address

struct Challenge:
    # Zero when the challenge was answered or its bond was given back.
    challenger: address
    # What the operator has to show, or has shown: the next challenge must ask for more.
    cumulative: uint256
    deadline: uint256

# @notice The challenge of (operator, epoch, payee).
challenges: public(HashMap[address, HashMap[uint256, HashMap[address, Challenge]]])


@external
def post_root(epoch: uint256, root: bytes32, total: uint256, ledger_root: bytes32):
    """
    @notice Publish the cumulative earnings of all payees of the calling operator.
    @param epoch The root's number: the next one, so that no promise can be outrun.
    @param root Hash of the Merkle sum tree; its leaves include the operator's own fee.
    @param total Sum of the leaves: between the active root's total and what was redeemed.
    @param ledger_root Head of the transparency log that the tree was computed from.
    """
    operator: books.Operator = books.operators[msg.sender]
    active_total: uint256 = books.active_root[msg.sender].total
    assert operator.stale_at == 0, "root: stale"
    assert books.pending_root[msg.sender].epoch == 0, "root: one is pending"
    assert epoch == operator.next_epoch, "root: not the next epoch"
    assert operator.stake >= limits.STAKE_MIN, "root: stake too small"
    assert total >= active_total, "root: total goes back"
    assert total <= operator.credit, "root: total over credit"
    assert total - active_total <= operator.stake // limits.STAKE_COVER, "root: over the stake"
    books.operators[msg.sender].next_epoch = epoch + 1
    books.pending_root[msg.sender] = books.Root(
        root=root, total=total, epoch=epoch, posted_at=block.timestamp, disputes=0
    )
    log RootPosted(
        operator=msg.sender, epoch=epoch, root=root, total=total, ledger_root=ledger_root
    )


@external
def challenge(
    operator: address,
    payee: address,
    epoch: uint256,
    cumulative: uint256,
    signature: Bytes[signatures.SIGNATURE_BYTES],
):
    """
    @notice Say that the pending root holds less for `payee` than the operator promised, or than was
            paid already. The caller deposits a bond: it comes back with half the stake if the operator
            has no answer, and goes to the operator if it has. A higher promise takes over the slot.
    @param operator Whose pending root is disputed.
    @param payee Whose earnings are missing.
    @param epoch The promise's epoch: it binds this root if the root is not older.
    @param cumulative The promised cumulative earnings.
    @param signature The operator's signature of the promise; empty if the amount was paid already,
           because then the contract itself is the evidence.
    """
    root: books.Root = books.pending_root[operator]
    assert root.epoch > 0, "challenge: no root"
    assert block.timestamp < root.posted_at + limits.WINDOW_S, "challenge: too late"
    assert epoch <= root.epoch, "challenge: for a later root"
    slot: Challenge = self.challenges[operator][root.epoch][payee]
    assert cumulative > slot.cumulative, "challenge: not more"
    if cumulative > books.paid[operator][payee]:
        digest: bytes32 = signatures._promise_digest(operator, payee, epoch, cumulative)
        assert signatures._is_signed_by_key(operator, digest, signature), "challenge: not signed"
    if slot.challenger == empty(address):
        books.pending_root[operator].disputes = root.disputes + 1
    else:
        # An operator must not hold the slot with an old promise of the same payee.
        vault.owed[slot.challenger] += limits.BOND
    self.challenges[operator][root.epoch][payee] = Challenge(
        challenger=msg.sender,
        cumulative=cumulative,
        deadline=block.timestamp + limits.RESPONSE_S,
    )
    log Challenged(
        operator=operator,
        epoch=root.epoch,
        payee=payee,
        challenger=msg.sender,
        cumulative=cumulative,
    )
    vault._pull(limits.BOND)


@external
def respond(
    operator: address,
    payee: address,
    cumulative: uint256,
    index: uint256,
    proof: DynArray[sum_tree.Node, sum_tree.DEPTH_MAX],
):
    """
    @notice Answer a challenge by showing the payee's leaf; anyone may. The bond goes to the operator.
    @param operator Whose pending root is disputed.
    @param payee Whose earnings were said to be missing.
    @param cumulative The leaf's cumulative earnings.
    @param index The leaf's position.
    @param proof The leaf's siblings, from the bottom.
    """
    root: books.Root = books.pending_root[operator]
    slot: Challenge = self.challenges[operator][root.epoch][payee]
    assert slot.challenger != empty(address), "respond: no challenge"
    # A voided challenge lies under a root that is no longer pending, so its slot is not found here.
    assert block.timestamp < slot.deadline, "respond: too late"
    assert cumulative >= slot.cumulative, "respond: leaf too small"
    assert sum_tree._holds(
        root.root, root.total, operator, payee, cumulative, index, proof
    ), "respond: bad proof"
    books.pending_root[operator].disputes = root.disputes - 1
    self.challenges[operator][root.epoch][payee] = Challenge(
        challenger=empty(address), cumulative=cumulative, deadline=0
    )
    vault.owed[operator] += limits.BOND
    log Responded(operator=operator, epoch=root.epoch, payee=payee, cumulative=cumulative)


@external
def resolve(operator: address, payee: address):
    """
    @notice End a challenge that had no answer in time: the root is cancelled, half of the stake goes
            to the challenger and half is burned.
    @param operator Whose pending root is cancelled.
    @param payee Whose challenge was not answered.
    """
    root: books.Root = books.pending_root[operator]
    slot: Challenge = self.challenges[operator][root.epoch][payee]
    assert slot.challenger != empty(address), "resolve: no challenge"
    assert block.timestamp >= slot.deadline, "resolve: too soon"
    stake: uint256 = books.operators[operator].stake
    bounty: uint256 = stake // 2
    self.challenges[operator][root.epoch][payee].challenger = empty(address)
    books.operators[operator].stake = 0
    books.pending_root[operator] = empty(books.Root)
    vault.owed[slot.challenger] += bounty + limits.BOND
    log Slashed(
        operator=operator, challenger=slot.challenger, bounty=bounty, burned=stake - bounty
    )
    log RootCancelled(operator=operator, epoch=root.epoch)
    vault._burn(stake - bounty)


@external
def reclaim_bond(operator: address, epoch: uint256, payee: address):
    """
    @notice Release the bond of a challenge whose root another challenge has cancelled.
    @param operator Whose root it was.
    @param epoch The cancelled root's number.
    @param payee Whose challenge was left open.
    """
    assert books.pending_root[operator].epoch != epoch, "reclaim: root pending"
    challenger: address = self.challenges[operator][epoch][payee].challenger
    assert challenger != empty(address), "reclaim: no challenge"
    self.challenges[operator][epoch][payee].challenger = empty(address)
    vault.owed[challenger] += limits.BOND
    log BondReclaimed(operator=operator, epoch=epoch, payee=payee, challenger=challenger)


@external
def finalize(operator: address):
    """
    @notice Let a root pay whose window is over and whose challenges are all answered; anyone may.
    @param operator Whose pending root becomes the active one.
    """
    root: books.Root = books.pending_root[operator]
    assert root.epoch > 0, "finalize: no root"
    assert block.timestamp >= root.posted_at + limits.WINDOW_S, "finalize: too soon"
    assert root.disputes == 0, "finalize: disputed"
    books.active_root[operator] = root
    books.pending_root[operator] = empty(books.Root)
    # From its posting, not from now: a late call must not lengthen the time to the next root.
    books.operators[operator].fresh_at = root.posted_at
    log RootFinal(operator=operator, epoch=root.epoch, total=root.total)

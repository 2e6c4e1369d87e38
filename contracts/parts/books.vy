# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Books
@license Apache-2.0
@notice What each operator has staked, collected and paid out; who was paid; and the way in and out
        of being an operator.
@dev Tokens held = channels + (stake + credit - claimed of every operator) + estates + bonds + owed.
     claimed <= total of the active root <= credit.
"""

from contracts.parts import limits
from contracts.parts import vault

uses: limits
uses: vault

event Staked:
    operator: indexed(address)
    amount: uint256
    stake: uint256

event UnstakeRequested:
    operator: indexed(address)
    epoch: uint256

event Unstaked:
    operator: indexed(address)
    amount: uint256

struct Operator:
    stake: uint256
    # Cumulative: redeemed from clients, and paid to leaves of roots. When the operator becomes stale,
    # what no root shares out leaves its credit for its estate.
    credit: uint256
    claimed: uint256
    # The next root's number, from 1. A cancelled root's number is not used again.
    next_epoch: uint256
    # When the newest final root was posted, or when there began to be something to share out.
    fresh_at: uint256
    # The epoch that must be final before the stake may leave; 0 if the operator is staying.
    unstake_epoch: uint256
    # When the operator was declared stale, which is for ever; 0 if it was not.
    stale_at: uint256

struct Root:
    root: bytes32
    total: uint256
    epoch: uint256
    posted_at: uint256
    # Challenges without an answer.
    disputes: uint256

operators: public(HashMap[address, Operator])

# @notice The root that pays, and the one that is in its window (epoch 0 if none is).
active_root: public(HashMap[address, Root])
pending_root: public(HashMap[address, Root])

# @notice Cumulative amount paid to (operator, payee).
paid: public(HashMap[address, HashMap[address, uint256]])


@external
def stake(amount: uint256):
    """
    @notice Lock tokens that are lost if a root cheats a payee, or if roots stop. Staking again
            withdraws a request to leave, but does not buy time: one that is late with its root can
            still be declared stale at once.
    @param amount Token units to add; with what is there already, at least the smallest stake.
    """
    operator: Operator = self.operators[msg.sender]
    assert amount > 0, "stake: nothing"
    assert operator.stale_at == 0, "stake: stale"
    # Below this no root is taken, so the stake would only wait to be burned.
    assert operator.stake + amount >= limits.STAKE_MIN, "stake: too small"
    if operator.stake == 0 and operator.credit == self.active_root[msg.sender].total:
        # Nothing waited to be shared out, so the time for the next root begins now.
        self.operators[msg.sender].fresh_at = block.timestamp
    if operator.next_epoch == 0:
        self.operators[msg.sender].next_epoch = 1
    self.operators[msg.sender].stake = operator.stake + amount
    self.operators[msg.sender].unstake_epoch = 0
    log Staked(operator=msg.sender, amount=amount, stake=operator.stake + amount)
    vault._pull(amount)


@external
def request_unstake():
    """
    @notice Announce that the caller stops being an operator. Payees stop working for it; whatever
            they were promised before binds one of the next two roots, which must become final first.
    """
    operator: Operator = self.operators[msg.sender]
    assert operator.stake > 0, "unstake: nothing"
    assert operator.unstake_epoch == 0, "unstake: requested"
    self.operators[msg.sender].unstake_epoch = operator.next_epoch + 1
    log UnstakeRequested(operator=msg.sender, epoch=operator.next_epoch + 1)


@external
def unstake() -> uint256:
    """
    @notice Take the stake back, once nothing redeemed is un-rooted and two more roots are final.
    @return The amount that was sent.
    """
    operator: Operator = self.operators[msg.sender]
    active: Root = self.active_root[msg.sender]
    assert operator.unstake_epoch > 0, "unstake: not requested"
    assert operator.stake > 0, "unstake: nothing"
    assert self.pending_root[msg.sender].epoch == 0, "unstake: root pending"
    assert active.epoch >= operator.unstake_epoch, "unstake: too soon"
    assert operator.credit == active.total, "unstake: credit un-rooted"
    self.operators[msg.sender].stake = 0
    self.operators[msg.sender].unstake_epoch = 0
    log Unstaked(operator=msg.sender, amount=operator.stake)
    vault._send(msg.sender, operator.stake)
    return operator.stake


@internal
@view
def _room(operator: Operator, total: uint256) -> uint256:
    """
    @dev How much more may be redeemed before a root has to share it out.
    """
    limit: uint256 = total + operator.stake // limits.STAKE_COVER
    return limit - min(limit, operator.credit)

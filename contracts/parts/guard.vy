# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Guard
@license Apache-2.0
@notice One switch: no new deposits. The owner reaches nobody's funds, and may give the switch up.
"""

event Paused:
    paused: bool

event OwnerProposed:
    candidate: indexed(address)

event OwnerChanged:
    owner: indexed(address)

owner: public(address)
candidate: public(address)
paused: public(bool)


@deploy
def __init__():
    self.owner = msg.sender
    log OwnerChanged(owner=msg.sender)


@external
def set_paused(paused: bool):
    """
    @notice Stop or resume new deposits; everything else goes on.
    @param paused Whether deposits are refused.
    """
    assert msg.sender == self.owner, "owner: not you"
    self.paused = paused
    log Paused(paused=paused)


@external
def propose_owner(candidate: address):
    """
    @notice Offer the switch to another account, which has to accept it.
    @param candidate Who may accept; the zero address withdraws the offer.
    """
    assert msg.sender == self.owner, "owner: not you"
    self.candidate = candidate
    log OwnerProposed(candidate=candidate)


@external
def accept_ownership():
    """
    @notice Take the switch that was offered to the caller.
    """
    assert msg.sender == self.candidate, "owner: not proposed"
    self._set_owner(msg.sender)


@external
def renounce_ownership():
    """
    @notice Give the switch up for ever. Not while deposits are paused, or they would stay so.
    """
    assert msg.sender == self.owner, "owner: not you"
    assert not self.paused, "owner: paused"
    self._set_owner(empty(address))


@internal
def _set_owner(owner: address):
    self.owner = owner
    self.candidate = empty(address)
    log OwnerChanged(owner=owner)

# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Vault
@license Apache-2.0
@notice The one token that this deployment accepts, and every way in which it moves.
@dev One token per deployment is the shortest allow-list: nobody can add another. A token that takes
     a fee, or answers false, is refused at the transfer.
"""

from ethereum.ercs import IERC20

event Withdrawn:
    account: indexed(address)
    amount: uint256

# Nobody holds a key to it; unlike the zero address, no common token refuses it.
BURN_ADDRESS: constant(address) = 0x000000000000000000000000000000000000dEaD

TOKEN: immutable(IERC20)

# @notice Bonds, bounties and refunds that an account can withdraw. They are pulled, not pushed, so a
#         receiver that the token refuses cannot stop a dispute from ending.
owed: public(HashMap[address, uint256])


@deploy
def __init__(token: address):
    assert token.is_contract, "vault: no token"
    TOKEN = IERC20(token)


@external
@view
def token() -> address:
    """
    @notice The token that this deployment settles in.
    @return Its address.
    """
    return TOKEN.address


@external
def withdraw() -> uint256:
    """
    @notice Take what the contract owes to the caller from disputes.
    @return The amount that was sent.
    """
    amount: uint256 = self.owed[msg.sender]
    assert amount > 0, "vault: nothing owed"
    self.owed[msg.sender] = 0
    log Withdrawn(account=msg.sender, amount=amount)
    self._send(msg.sender, amount)
    return amount


@internal
def _pull(amount: uint256):
    """
    @dev Take `amount` from the caller, and make sure that exactly this much arrived.
    """
    before: uint256 = staticcall TOKEN.balanceOf(self)
    assert extcall TOKEN.transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "vault: token refused"
    after: uint256 = staticcall TOKEN.balanceOf(self)
    assert after >= before and after - before == amount, "vault: token took a fee"


@internal
def _send(to: address, amount: uint256):
    assert extcall TOKEN.transfer(to, amount, default_return_value=True), "vault: token refused"


@internal
def _burn(amount: uint256):
    self._send(BURN_ADDRESS, amount)

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

# Nobody holds a key to it; unlike the zero address, common tokens take it as a receiver.
BURN_ADDRESS: constant(address) = 0x000000000000000000000000000000000000dEaD

TOKEN: immutable(IERC20)

# @notice Bonds, bounties and what is to be burned. They are pulled, not pushed, so a receiver that the
#         token refuses, the burn address included, cannot stop a dispute from ending.
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
def withdraw(account: address) -> uint256:
    """
    @notice Send to an account what disputes left it; anyone may call, since only the account is paid.
    @param account Who is paid; the burn address destroys what was slashed.
    @return The amount that was sent.
    """
    amount: uint256 = self.owed[account]
    assert amount > 0, "vault: nothing owed"
    self.owed[account] = 0
    log Withdrawn(account=account, amount=amount)
    self._send(account, amount)
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
    """
    @dev Nobody can get it back from here; `withdraw` only moves it to where that shows.
    """
    self.owed[BURN_ADDRESS] += amount

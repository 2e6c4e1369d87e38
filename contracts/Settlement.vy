# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title CapaCloud settlement
@license Apache-2.0
@notice Clients hold escrow for an operator and sign ceilings; the operator redeems what it charges, and
        shares it among its payees by challengeable roots. Nobody can upgrade it, and its owner can do
        nothing but stop new deposits.
@dev The parts hold the rules; this file only puts them together. docs/settlement.md explains them.
"""

from contracts.parts import books
from contracts.parts import channels
from contracts.parts import guard
from contracts.parts import limits
from contracts.parts import payouts
from contracts.parts import roots
from contracts.parts import vault

initializes: guard
initializes: limits
initializes: vault
initializes: books[limits := limits, vault := vault]
initializes: channels[books := books, guard := guard, limits := limits, vault := vault]
initializes: roots[books := books, limits := limits, vault := vault]
initializes: payouts[books := books, limits := limits, vault := vault]

exports: books.__interface__
exports: channels.__interface__
exports: guard.__interface__
exports: payouts.__interface__
exports: roots.__interface__
exports: limits.__interface__
exports: vault.__interface__


@deploy
def __init__(token: address, fixed: limits.Terms):
    """
    @param token The ERC-20 token to settle in: no fee on transfer, no rebasing.
    @param fixed Delays and amounts, for ever.
    """
    guard.__init__()
    limits.__init__(fixed)
    vault.__init__(token)

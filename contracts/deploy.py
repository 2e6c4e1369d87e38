"""Putting a settlement contract on a chain: which token, which terms."""

from dataclasses import astuple, replace

from contracts.abi import load_artifact
from contracts.chain import Call, Sender
from contracts.errors import BadConfigurationError
from contracts.state import Terms
from contracts.units import Address

_DAY_S = 86_400
# One whole token of six decimals, the unit of the stablecoins that a credit is priced like.
_DECIMALS = 6
_TOKEN = 10**_DECIMALS
# The contract's 104 bits of money are 2 * 10^13 whole tokens of these.
_DECIMALS_MAX = 18

# The reasons are in docs/settlement.md, "Parameters".
PUBLIC_TERMS = Terms(
    window_s=3 * _DAY_S,
    response_s=_DAY_S,
    exit_delay_s=9 * _DAY_S,
    stale_after_s=14 * _DAY_S,
    collection_s=7 * _DAY_S,
    stake_min=1_000 * _TOKEN,
    bond=50 * _TOKEN,
)

# For a test network, where days of waiting are useless.
TRIAL_TERMS = Terms(
    window_s=600,
    response_s=300,
    exit_delay_s=2_400,
    stale_after_s=3_600,
    collection_s=1_200,
    stake_min=100 * _TOKEN,
    bond=5 * _TOKEN,
)

# Tokens that move exactly what they are told to, by chain. Circle's USDC, from its own list of
# contract addresses. Others need --any-token, which says that someone has read the token's code.
ALLOWED_TOKENS: dict[int, frozenset[Address]] = {
    1: frozenset({Address("0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48")}),
    8453: frozenset({Address("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")}),
    42161: frozenset({Address("0xaf88d065e77c8cC2239327C5EDb3A432268e5831")}),
    84532: frozenset({Address("0x036CbD53842c5426634e7929541eC2318f3dCF7e")}),
    11155111: frozenset({Address("0x1c7D4B196Cb0C7B01d743Fbc6116a902379C7238")}),
}


def check_token(chain_id: int, token: Address) -> None:
    """Raises BadConfigurationError unless the token is on the list."""
    if token not in ALLOWED_TOKENS.get(chain_id, frozenset()):
        raise BadConfigurationError(
            f"{token} is not a listed token of chain {chain_id}. Read its code: a fee on transfer "
            "or balances that change by themselves would break the books. Then pass --any-token"
        )


def scaled_terms(terms: Terms, decimals: int) -> Terms:
    """The same terms for a token of other decimals: its units are worth more, or far less.

    Raises BadConfigurationError if the token has so many or so few that the contract cannot count.
    """
    if not _DECIMALS <= decimals <= _DECIMALS_MAX:
        raise BadConfigurationError(
            f"the token has {decimals} decimals: {_DECIMALS} to {_DECIMALS_MAX} can be settled in"
        )
    factor = 10 ** (decimals - _DECIMALS)
    return replace(terms, stake_min=terms.stake_min * factor, bond=terms.bond * factor)


async def deploy_test_token(sender: Sender, *, key: str = "deploy-token") -> Address:
    return await _deploy(sender, key, load_artifact("TestToken").deployment())


async def deploy_settlement(
    sender: Sender, token: Address, terms: Terms, *, key: str = "deploy-settlement"
) -> Address:
    """The new contract's address. The sender becomes its owner, who can only pause deposits."""
    data = load_artifact("Settlement").deployment(token, astuple(terms))
    return await _deploy(sender, key, data)


async def _deploy(sender: Sender, key: str, data: bytes) -> Address:
    receipt = await sender.send(key, Call(None, data))
    if receipt.contract is None:
        raise BadConfigurationError(f"{receipt.transaction} created no contract")
    return receipt.contract

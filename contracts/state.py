"""What the contract keeps, in its own names. Amounts are token units, times Unix seconds."""

from dataclasses import dataclass

from contracts.units import Address


@dataclass(frozen=True, slots=True)
class Terms:
    """A deployment's delays and amounts; `docs/settlement.md` gives the reasons."""

    window_s: int
    response_s: int
    exit_delay_s: int
    stale_after_s: int
    collection_s: int
    stake_min: int
    bond: int


@dataclass(frozen=True, slots=True)
class EscrowChannel:
    balance: int
    redeemed: int
    exit_at: int


@dataclass(frozen=True, slots=True)
class OperatorState:
    stake: int
    credit: int
    claimed: int
    next_epoch: int
    fresh_at: int
    unstake_epoch: int
    stale_at: int


@dataclass(frozen=True, slots=True)
class RootState:
    root: bytes
    total: int
    epoch: int
    posted_at: int
    disputes: int


@dataclass(frozen=True, slots=True)
class ChallengeState:
    challenger: Address
    cumulative: int
    deadline: int


@dataclass(frozen=True, slots=True)
class EstateState:
    """What a stale operator left, what is still there of it, and how much was filed for it."""

    reserve: int
    left: int
    weight: int

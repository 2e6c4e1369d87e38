"""What can go wrong between us and a chain."""

from protocol.errors import CapaError


class SettlementError(CapaError):
    """Base of this package's errors."""


class ChainUnreachableError(SettlementError):
    """No answer from the chain's node, or none that makes sense.

    What was sent may or may not have arrived.
    """


class RpcError(SettlementError):
    """The chain's node answered with an error."""

    def __init__(self, message: str, *, code: int, data: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class RevertedError(SettlementError):
    """The contract refused; `reason` is its own short text, such as `redeem: over the ceiling`."""

    def __init__(self, reason: str, *, transaction: str | None = None) -> None:
        place = f" in transaction {transaction}" if transaction else ""
        super().__init__(f"the contract refused: {reason or 'no reason given'}{place}")
        self.reason = reason


class NotConfirmedError(SettlementError):
    """A transaction was not confirmed in time. It may still be: send with the same key to go on."""


class NonceTakenError(SettlementError):
    """Another transaction of the same account used the nonce: two writers share one key."""


class BadSignatureError(SettlementError):
    """A voucher, promise or binding is not signed by whom it names."""


class BadProofError(SettlementError):
    """A leaf is not where its proof says."""


class BadConfigurationError(SettlementError):
    """A deployment or command line that cannot work; the message says what to change."""

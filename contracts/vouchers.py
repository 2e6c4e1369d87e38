"""What is signed for the contract: a client's Voucher and an operator's Promise (EIP-712).

The digests are hashed by hand, which is ten times faster than a general encoder; a test compares
them with eth-account's. Signatures are r, s, v in 65 bytes, with the low s that the contract wants.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

from coincurve import PrivateKey, PublicKey

from contracts.errors import BadSignatureError
from contracts.keccak import keccak
from contracts.units import Address, address_bytes, address_from_bytes

SECRET_BYTES = 32
SIGNATURE_BYTES = 65
_S_MAX = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_UINT256_MAX = 2**256 - 1


@dataclass(frozen=True)
class Domain:
    """Which deployment a signature is for; the same signature is nothing to any other."""

    chain_id: int
    contract: Address

    NAME: ClassVar[str] = "CapaCloud Settlement"
    VERSION: ClassVar[str] = "1"

    @cached_property
    def separator(self) -> bytes:
        kind = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
        return keccak(
            keccak(kind.encode())
            + keccak(self.NAME.encode())
            + keccak(self.VERSION.encode())
            + self.chain_id.to_bytes(32)
            + _word(self.contract)
        )


class TypedData(Protocol):
    """Something with an EIP-712 hash and one rightful signer."""

    def struct_hash(self) -> bytes: ...

    @property
    def signer(self) -> Address: ...


@dataclass(frozen=True, slots=True)
class Voucher:
    """A client pays an operator up to `ceiling` token units, over all time."""

    client: Address
    operator: Address
    ceiling: int

    TYPE: ClassVar[str] = "Voucher(address client,address operator,uint256 ceiling)"

    @property
    def signer(self) -> Address:
        return self.client

    def struct_hash(self) -> bytes:
        return keccak(
            _type_hash(self.TYPE) + _word(self.client) + _word(self.operator) + _uint(self.ceiling)
        )


@dataclass(frozen=True, slots=True)
class Promise:
    """An operator owes a payee `cumulative` token units, all told, in every root from `epoch`."""

    operator: Address
    payee: Address
    epoch: int
    cumulative: int

    TYPE: ClassVar[str] = "Promise(address operator,address payee,uint256 epoch,uint256 cumulative)"

    @property
    def signer(self) -> Address:
        return self.operator

    def struct_hash(self) -> bytes:
        return keccak(
            _type_hash(self.TYPE)
            + _word(self.operator)
            + _word(self.payee)
            + _uint(self.epoch)
            + _uint(self.cumulative)
        )


class EvmKey:
    """A secp256k1 key of an ordinary account. Its repr shows the address only."""

    __slots__ = ("_private", "address")

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError if it is not 32 bytes of a number in the curve's range."""
        # The library would pad a key that lost its end: a valid key, but of another account.
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a key has {SECRET_BYTES} bytes, not {len(secret)}")
        self._private = PrivateKey(secret)
        self.address = address_from_bytes(_address_bytes(self._private.public_key))

    def sign_digest(self, digest: bytes) -> bytes:
        """r, s, v of a 32-byte digest; libsecp256k1 always answers with the low s."""
        signature = self._private.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])

    def sign(self, domain: Domain, message: TypedData) -> bytes:
        """Raises BadSignatureError if the message is not this key's to sign."""
        if message.signer != self.address:
            raise BadSignatureError(f"{message.signer} must sign this, not {self.address}")
        return self.sign_digest(digest_of(domain, message))

    def secret(self) -> bytes:
        """The key itself: for the key file only."""
        return self._private.secret

    def __repr__(self) -> str:
        return f"EvmKey({self.address})"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


@dataclass(frozen=True, slots=True)
class SignedVoucher:
    """A voucher with its signature, and what the operator charges against it so far."""

    voucher: Voucher
    signature: bytes = field(repr=False)
    charged: int = 0


def digest_of(domain: Domain, message: TypedData) -> bytes:
    return keccak(b"\x19\x01" + domain.separator + message.struct_hash())


def recover(digest: bytes, signature: bytes) -> Address:
    """Who signed. Raises BadSignatureError on what the contract would refuse, a high s included."""
    return address_from_bytes(_recover(digest, signature))


def check_signature(domain: Domain, message: TypedData, signature: bytes) -> None:
    """Raises BadSignatureError unless the rightful signer, an ordinary account, signed.

    A contract wallet's signature (EIP-1271) only its own code can check, on the chain.
    """
    # Bytes are compared, because spelling an address with its checksum takes another hash.
    signer = _recover(digest_of(domain, message), signature)
    if signer != address_bytes(message.signer):
        name = address_from_bytes(signer)
        raise BadSignatureError(f"signed by {name}, not by {message.signer}")


def _recover(digest: bytes, signature: bytes) -> bytes:
    v = signature[64] if len(signature) == SIGNATURE_BYTES else 0
    if v not in (27, 28) or int.from_bytes(signature[32:64]) > _S_MAX:
        raise BadSignatureError("not a 65-byte signature with a low s")
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([v - 27]), digest, hasher=None
        )
    except ValueError as error:
        raise BadSignatureError("no key made this signature") from error
    return _address_bytes(key)


@lru_cache(maxsize=4096)
def _word(address: Address) -> bytes:
    return bytes(12) + address_bytes(address)


@lru_cache(maxsize=16)
def _type_hash(kind: str) -> bytes:
    return keccak(kind.encode())


def _uint(number: int) -> bytes:
    if not 0 <= number <= _UINT256_MAX:
        raise ValueError(f"{number} is not a uint256")
    return number.to_bytes(32)


def _address_bytes(key: PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[-20:]

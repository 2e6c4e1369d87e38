"""Which peer id is paid to which EVM address: evidence from both sides, checked off chain.

The Ed25519 key of the peer signs the address, and the secp256k1 key of the address signs the peer
id. Either alone would let someone take another's name: with both, neither can be bound against its
will.

    Ed25519 content:  "capa/1/evm-binding" 0x00, chain id (32 bytes), contract (20), address (20)
    EIP-712 message:  Binding(string peerId) in the settlement contract's domain

A chain cannot check Ed25519 at a sane price, and does not need to: payees are addresses there.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from contracts.keccak import keccak
from contracts.units import Address, address_bytes
from contracts.vouchers import Domain, EvmKey, check_signature
from protocol.ids import PeerId
from protocol.keys import SigningKey, verify

_ED25519_DOMAIN = b"capa/1/evm-binding\0"


@dataclass(frozen=True, slots=True)
class _PeerClaim:
    """The address's half: "I am paid for this peer"."""

    signer: Address
    peer_id: PeerId

    TYPE: ClassVar[str] = "Binding(string peerId)"

    def struct_hash(self) -> bytes:
        return keccak(keccak(self.TYPE.encode()) + keccak(self.peer_id.encode()))


@dataclass(frozen=True, slots=True)
class Binding:
    peer_id: PeerId
    address: Address
    peer_signature: bytes = field(repr=False)
    address_signature: bytes = field(repr=False)


def bind(domain: Domain, peer_key: SigningKey, evm_key: EvmKey) -> Binding:
    """Both signatures, by the holder of both keys: the node's operator."""
    content = _peer_content(domain, evm_key.address)
    claim = _PeerClaim(evm_key.address, peer_key.peer_id)
    return Binding(
        peer_key.peer_id, evm_key.address, peer_key.sign(content), evm_key.sign(domain, claim)
    )


def check_binding(domain: Domain, binding: Binding) -> None:
    """Raises RemoteProtocolError (BAD_SIGNATURE) or BadSignatureError unless both sides signed."""
    verify(binding.peer_id, _peer_content(domain, binding.address), binding.peer_signature)
    claim = _PeerClaim(binding.address, binding.peer_id)
    check_signature(domain, claim, binding.address_signature)


def _peer_content(domain: Domain, address: Address) -> bytes:
    place = domain.chain_id.to_bytes(32) + address_bytes(domain.contract)
    return _ED25519_DOMAIN + place + address_bytes(address)

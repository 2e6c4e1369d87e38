"""Signed messages as they travel and as they are stored.

    wire = msgpack [version, kind, signer's 32-byte public key, body, 64-byte signature]
    signed content = b"capa/1/" + kind + b"\\0" + body

The body is never encoded again after signing: what is verified, stored and forwarded are the bytes
as received. The digest that other messages name covers the signed content, not the signature, so a
second valid signature makes no second identity.
"""

from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import msgpack

from protocol.codec import decode, encode
from protocol.errors import Code, LocalProtocolError, RemoteProtocolError
from protocol.ids import Digest, PeerId, peer_id_from_public_key, sha256_digest
from protocol.keys import SigningKey, verify

ENVELOPE_VERSION = 1
_DOMAIN = b"capa/1/"


class SignedMessage(Protocol):
    """A message class that may be signed says its kind, so that no signature fits two kinds, and
    how long its envelope may be: that is looked at before anything of a stranger's is decoded."""

    KIND: ClassVar[str]
    BYTES_MAX: ClassVar[int]


M = TypeVar("M", bound=SignedMessage)


@dataclass(frozen=True, slots=True)
class Signed(Generic[M]):
    """A verified message with its evidence. `raw` is what to store and forward."""

    message: M
    signer: PeerId
    digest: Digest
    raw: bytes


def seal(key: SigningKey, message: M) -> Signed[M]:
    """Encode and sign. Raises LocalProtocolError if it is too long for anyone to open."""
    body = encode(message)
    content = _signed_content(message.KIND, body)
    raw = msgpack.packb(
        [ENVELOPE_VERSION, message.KIND, key.public_key, body, key.sign(content)],
        use_bin_type=True,
    )
    if len(raw) > message.BYTES_MAX:
        raise LocalProtocolError(f"a {message.KIND} of {len(raw)} bytes is over the limit")
    return Signed(message, key.peer_id, sha256_digest(content), raw)


def open_envelope(raw: bytes, message_type: type[M], *, signer: PeerId | None = None) -> Signed[M]:
    """Check the signature, then read the body.

    Raises RemoteProtocolError: MALFORMED, UNKNOWN_VERSION, FRAME_TOO_LARGE, BAD_SIGNATURE, or
    WRONG_SIGNER if `signer` is given and another party signed.
    """
    kind, public_key, body, signature = _split(raw, message_type)
    if kind != message_type.KIND:
        raise RemoteProtocolError(
            f"expected a {message_type.KIND}, got a {kind[:32]!r}", code=Code.MALFORMED
        )
    actual_signer = peer_id_from_public_key(public_key)
    if signer is not None and actual_signer != signer:
        raise RemoteProtocolError(
            f"the {kind} is signed by {actual_signer}, not by {signer}", code=Code.WRONG_SIGNER
        )
    content = _signed_content(kind, body)
    verify(actual_signer, content, signature)
    return Signed(decode(message_type, body), actual_signer, sha256_digest(content), raw)


def open_vouched(raw: bytes, message_type: type[M], *, digest: Digest) -> Signed[M]:
    """Read a message that a verified message names by `digest`: its signature was checked by who
    signed that one, and is not checked again. Raises as `open_envelope`, and DIGEST_MISMATCH."""
    kind, public_key, body, _ = _split(raw, message_type)
    actual_digest = sha256_digest(_signed_content(kind, body))
    if kind != message_type.KIND or actual_digest != digest:
        raise RemoteProtocolError(
            f"this is not the {message_type.KIND} that was named", code=Code.DIGEST_MISMATCH
        )
    signer = peer_id_from_public_key(public_key)
    return Signed(decode(message_type, body), signer, digest, raw)


def read_unverified(raw: bytes, message_type: type[M]) -> M:
    """The body alone, of evidence that is verified if it is ever used. Raises as `open_envelope`,
    but for the signature."""
    kind, _, body, _ = _split(raw, message_type)
    if kind != message_type.KIND:
        raise RemoteProtocolError(
            f"expected a {message_type.KIND}, got a {kind[:32]!r}", code=Code.MALFORMED
        )
    return decode(message_type, body)


def _signed_content(kind: str, body: bytes) -> bytes:
    return _DOMAIN + kind.encode() + b"\0" + body


def _split(raw: bytes, message_type: type[SignedMessage]) -> tuple[str, bytes, bytes, bytes]:
    if len(raw) > message_type.BYTES_MAX:
        raise RemoteProtocolError(
            f"a {message_type.KIND} of {len(raw)} bytes is over the limit",
            code=Code.FRAME_TOO_LARGE,
        )
    try:
        parts = msgpack.unpackb(raw, raw=False, max_array_len=5, max_map_len=0, max_ext_len=0)
    except msgpack.ExtraData:
        raise RemoteProtocolError("bytes follow the envelope", code=Code.TRAILING_BYTES) from None
    except (msgpack.UnpackException, ValueError, RecursionError):
        raise RemoteProtocolError("not an envelope", code=Code.MALFORMED) from None
    match parts:
        # By type: true and 1.0 equal 1, but are no version.
        case [version, *_] if type(version) is int and version != ENVELOPE_VERSION:
            raise RemoteProtocolError(
                f"the envelope's version is {version}, we read {ENVELOPE_VERSION}",
                code=Code.UNKNOWN_VERSION,
            )
        case [version, str(kind), bytes(public_key), bytes(body), bytes(signature)] if (
            type(version) is int and len(public_key) == 32 and len(signature) == 64
        ):
            return kind, public_key, body, signature
    raise RemoteProtocolError("not an envelope", code=Code.MALFORMED)

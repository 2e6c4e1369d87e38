"""A connection to a libp2p party on which every byte is ours: Noise and Yamux by hand.

Our transport sends whole frames only; an attacker need not. Source: the libp2p specifications
`noise/README.md` (handshake and its payload) and `connections/README.md` (multistream-select).
"""

import os
import struct
from contextlib import suppress

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import (  # type: ignore[import-untyped]  # noiseprotocol ships no types
    Keypair,
    NoiseConnection,
)

from protocol.keys import SigningKey

_NOISE = b"Noise_XX_25519_ChaChaPoly_SHA256"
_HANDSHAKE_PREFIX = b"noise-libp2p-static-key:"
_SEALED_BYTES_MAX = 65_519
_YAMUX_HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length
_YAMUX_DATA, _YAMUX_PING = 0, 2
_YAMUX_SYN = 1


class RawConnection:
    """An established connection. Use `connect_raw`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._unread = b""
        self._noise = NoiseConnection.from_name(_NOISE)

    async def establish(self) -> None:
        """Shake hands with a new key, and agree on Yamux."""
        await self._agree("/noise")
        static = X25519PrivateKey.generate()
        self._noise.set_as_initiator()
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes_raw())
        self._noise.start_handshake()
        await self._send_message(self._noise.write_message())
        self._noise.read_message(await self._receive_message())
        key = SigningKey.generate(os.urandom)
        payload = _identity(key, static.public_key().public_bytes_raw())
        await self._send_message(self._noise.write_message(payload))
        for offer in ("/multistream/1.0.0", "/yamux/1.0.0"):
            await self.send(_line(offer))

    async def send(self, data: bytes) -> None:
        """Bytes of the Yamux session, sealed."""
        for start in range(0, len(data), _SEALED_BYTES_MAX):
            piece = data[start : start + _SEALED_BYTES_MAX]
            await self._send_message(self._noise.encrypt(piece))

    async def begin_frame(self, stream_id: int, size: int) -> None:
        """The head of a Yamux DATA frame, whose body may follow or not."""
        await self.send(_YAMUX_HEADER.pack(0, _YAMUX_DATA, 0, stream_id, size))

    @staticmethod
    def ping(number: int) -> bytes:
        """A Yamux frame that asks for an answer."""
        return _YAMUX_HEADER.pack(0, _YAMUX_PING, _YAMUX_SYN, 0, number)

    @staticmethod
    def open_stream(stream_id: int, protocol_id: str, data: bytes = b"") -> bytes:
        """A Yamux frame that opens a stream, proposes its protocol and sends the first data."""
        body = _line("/multistream/1.0.0") + _line(protocol_id) + data
        return _YAMUX_HEADER.pack(0, _YAMUX_DATA, _YAMUX_SYN, stream_id, len(body)) + body

    @staticmethod
    def data(stream_id: int, body: bytes) -> bytes:
        return _YAMUX_HEADER.pack(0, _YAMUX_DATA, 0, stream_id, len(body)) + body

    async def drain(self) -> None:
        """Take what comes, and forget it, until the connection ends."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some():
                pass

    async def _agree(self, protocol_id: str) -> None:
        await self._stream.send_all(_line("/multistream/1.0.0") + _line(protocol_id))
        for _ in range(2):
            size = (await self._receive(1))[0]
            await self._receive(size)

    async def _send_message(self, message: bytes) -> None:
        await self._stream.send_all(len(message).to_bytes(2, "big") + message)

    async def _receive_message(self) -> bytes:
        size = int.from_bytes(await self._receive(2), "big")
        return await self._receive(size)

    async def _receive(self, size: int) -> bytes:
        while len(self._unread) < size:
            data = await self._stream.receive_some()
            if not data:
                raise trio.BrokenResourceError("the peer closed the connection")
            self._unread += data
        data, self._unread = self._unread[:size], self._unread[size:]
        return data


async def connect_raw(port: int) -> RawConnection:
    """Raises OSError, trio.BrokenResourceError."""
    connection = RawConnection(await trio.open_tcp_stream("127.0.0.1", port))
    await connection.establish()
    return connection


def _line(text: str) -> bytes:
    """A message of multistream-select: its length, and a line."""
    data = text.encode() + b"\n"
    return bytes([len(data)]) + data


def _identity(key: SigningKey, static: bytes) -> bytes:
    """The handshake's payload, in Protocol Buffers: our public key, and what it has signed."""
    public = b"\x08\x01\x12\x20" + key.public_key
    signature = key.sign(_HANDSHAKE_PREFIX + static)
    return b"\x0a" + bytes([len(public)]) + public + b"\x12" + bytes([len(signature)]) + signature

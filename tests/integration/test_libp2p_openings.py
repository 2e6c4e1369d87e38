"""What a peer answers when we dial it, or open a stream to it, ends that opening and no more: the
library's decoders raise all kinds of errors, and one of them once ended the whole program."""

import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import (  # type: ignore[import-untyped]  # noiseprotocol ships no types
    Keypair,
    NoiseConnection,
)

from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK, PUBLIC_ONLY
from protocol.net.errors import ConnectFailed
from protocol.net.libp2p import Libp2pTransport
from protocol.net.libp2p_tcp import OwnPort, dial

MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"
YAMUX = b"\x0d/yamux/1.0.0\n"
NOT_UTF8 = b"\x05\xff\xfe\xfd\xfc\n"
YAMUX_HEADER = struct.Struct("!BBHII")
WITHIN_S = 10.0
KEY = SigningKey(bytes(range(32)))
PUBLIC = b"\x08\x01\x12\x20" + KEY.public_key


class Responder:
    """The other side of a dial. What it says within Noise is the test's."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.static = X25519PrivateKey.generate()
        self.noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        self._unread = b""

    async def shake_hands(self, payload: bytes) -> None:
        for answer in (MULTISTREAM, NOISE):
            await self.receive((await self.receive(1))[0])
            await self.stream.send_all(answer)
        self.noise.set_as_responder()
        static = self.static.private_bytes_raw()
        self.noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
        self.noise.start_handshake()
        self.noise.read_message(await self.receive_message())
        await self.send_message(self.noise.write_message(payload))
        self.noise.read_message(await self.receive_message())

    def honest_payload(self) -> bytes:
        signature = KEY.sign(
            b"noise-libp2p-static-key:" + self.static.public_key().public_bytes_raw()
        )
        return payload_of(PUBLIC, signature)

    async def say(self, data: bytes) -> None:
        await self.send_message(self.noise.encrypt(data))

    async def hear(self) -> bytes:
        heard: bytes = self.noise.decrypt(await self.receive_message())
        return heard

    async def send_message(self, message: bytes) -> None:
        await self.stream.send_all(len(message).to_bytes(2, "big") + message)

    async def receive_message(self) -> bytes:
        return await self.receive(int.from_bytes(await self.receive(2), "big"))

    async def receive(self, size: int) -> bytes:
        while len(self._unread) < size:
            data = await self.stream.receive_some()
            if not data:
                raise trio.BrokenResourceError
            self._unread += data
        data, self._unread = self._unread[:size], self._unread[size:]
        return data


def payload_of(public: bytes, signature: bytes = bytes(64)) -> bytes:
    parts = ((b"\x0a", public), (b"\x12", signature))
    return b"".join(tag + bytes([len(part)]) + part for tag, part in parts)


@pytest.fixture
async def ours(nursery: trio.Nursery) -> Libp2pTransport:
    transport = Libp2pTransport(SigningKey.generate(os.urandom), policy=ALLOW_LOOPBACK)
    await nursery.start(transport.run)
    return transport


async def listen(nursery: trio.Nursery, answer: Callable[[Responder], Awaitable[None]]) -> str:
    """The address of a listener that answers like this."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                responder = Responder(stream)
                await answer(responder)
                while await stream.receive_some():
                    pass

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    port = listener.socket.getsockname()[1]
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{KEY.peer_id}"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        os.urandom(100),
        payload_of(b""),
        payload_of(b"\x08\x09\x12\x20" + KEY.public_key),
        payload_of(b"\x08\x00\x12\x20" + KEY.public_key),
        payload_of(b"\x08\x01\x12\x02ab"),
        payload_of(b"\xff" * 36),
        payload_of(PUBLIC),
    ],
    ids=["empty", "noise", "no key", "odd kind", "rsa", "short key", "no message", "unsigned"],
)
async def test_a_handshake_that_says_rubbish_fails(
    nursery: trio.Nursery, ours: Libp2pTransport, payload: bytes
) -> None:
    address = await listen(nursery, lambda responder: responder.shake_hands(payload))
    with pytest.raises(ConnectFailed):
        await ours.connect(address, timeout_s=WITHIN_S)


@pytest.mark.parametrize("rubbish", [None, NOT_UTF8, MULTISTREAM + NOT_UTF8, b"\xff" * 40])
async def test_rubbish_instead_of_a_multiplexer_fails(
    nursery: trio.Nursery, ours: Libp2pTransport, rubbish: bytes | None
) -> None:
    async def answer(responder: Responder) -> None:
        await responder.shake_hands(responder.honest_payload())
        if rubbish is None:
            await responder.send_message(b"")
        else:
            await responder.say(rubbish)

    address = await listen(nursery, answer)
    with pytest.raises(ConnectFailed):
        await ours.connect(address, timeout_s=WITHIN_S)


@pytest.mark.parametrize("rubbish", [NOT_UTF8, MULTISTREAM + NOT_UTF8, b"\xff" * 40])
async def test_rubbish_instead_of_a_protocol_fails_that_stream(
    nursery: trio.Nursery, ours: Libp2pTransport, rubbish: bytes
) -> None:
    async def answer(responder: Responder) -> None:
        await responder.shake_hands(responder.honest_payload())
        await responder.say(MULTISTREAM + YAMUX)
        while True:
            await responder.hear()
            # On the first streams that a dialler opens, whatever they are for.
            for stream in (1, 3, 5):
                head = YAMUX_HEADER.pack(0, 0, 0, stream, len(rubbish))
                await responder.say(head + rubbish)

    address = await listen(nursery, answer)
    await ours.connect(address, timeout_s=WITHIN_S)
    with pytest.raises(ConnectFailed):
        await ours.open_stream(KEY.peer_id, "/test/1", timeout_s=WITHIN_S)


@pytest.mark.parametrize("name", ["a..b", ".", "☃.net", "\u2028", "x" * 64 + ".example"])
async def test_a_name_that_no_resolver_takes_fails(name: str) -> None:
    with pytest.raises(ConnectFailed):
        await dial(f"/dns4/{name}/tcp/1", PUBLIC_ONLY, OwnPort())

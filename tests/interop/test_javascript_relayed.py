"""Stock js-libp2p keeps a place at our relay, is called there, and calls."""

from pathlib import Path

import trio

from protocol.ids import parse_peer_id
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from tests.interop.javascript import start_peer
from tests.protocol.net.contract import ECHO, SOON_S, echo, key_of, receive_all, reserve

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


async def test_a_stock_party_is_reached_through_our_relay_and_reaches_ours(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    relay = Libp2pTransport(key_of(1), LOOPBACK, policy=ALLOW_LOOPBACK, relay=RelayLimits())
    hidden = Libp2pTransport(key_of(2), policy=ALLOW_LOOPBACK)
    hidden.handle(ECHO, echo)
    for transport in (relay, hidden):
        await nursery.start(transport.run)
    with start_peer("relayed.mjs", tmp_path / "peer.log") as peer:
        listening = await trio.to_thread.run_sync(
            lambda: peer.call("listen", relay=relay.addresses[0])
        )
        theirs = parse_peer_id(listening[0].rpartition("/")[2])
        await hidden.connect(listening[0], timeout_s=SOON_S)
        assert hidden.relay_of(theirs) == relay.peer_id
        stream = await hidden.open_stream(theirs, ECHO, timeout_s=SOON_S)
        await stream.send_all(b"hello from us")
        await stream.send_eof()
        with trio.fail_after(SOON_S):
            assert await receive_all(stream) == b"hello from us"
        await hidden.disconnect(theirs)
        address = await reserve(hidden, relay)
        heard = await trio.to_thread.run_sync(
            lambda: peer.call("talk", address=address, text="hello from them")
        )
        assert heard["heard"] == "hello from them"

"""A libp2p party in a process of its own, for tests that freeze or kill it.

Serves ECHO and a SINK that never reads; prints its address when it listens.
"""

import sys

import trio

from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.transport import Stream
from tests.protocol.net.contract import ECHO, echo

SINK = "/test/sink/1"
LIFETIME_S = 60.0


async def never_read(_: Stream) -> None:
    await trio.sleep_forever()


async def main() -> None:
    transport = Libp2pTransport(
        SigningKey(bytes([42]) * 32), ("/ip4/127.0.0.1/tcp/0",), policy=ALLOW_LOOPBACK
    )
    transport.handle(ECHO, echo)
    transport.handle(SINK, never_read)
    with trio.move_on_after(LIFETIME_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            sys.stdout.write(transport.addresses[0] + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main)

"""One party of the laboratory, in a process and a namespace of its own: `python -m sim.reach.party
ROLE`. It reads commands from standard input, one JSON object a line, and answers each with one.
"""

import json
import sys
from typing import Any

import structlog
import trio

from protocol.keys import SigningKey
from protocol.net.errors import NetError
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from protocol.net.relay_roster import RelayRoster
from protocol.net.transport import Stream
from sim.reach.routers import RELAY_HOST, RELAY_HOST_6

ECHO = "/reach/echo/1"
PORT = 4101
WITHIN_S = 20.0
LOOK_EVERY_S = 2.0


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


class Party:
    """`relay` listens in the middle, `node` keeps places at relays, `buyer` only dials."""

    def __init__(self, role: str, number: int) -> None:
        listen: tuple[str, ...] = ()
        announce: tuple[str, ...] = ()
        if role == "node":
            listen = (f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip6/::/tcp/{PORT}")
        if role == "relay":
            port = PORT + number
            listen = (f"/ip4/{RELAY_HOST}/tcp/{port}", f"/ip6/{RELAY_HOST_6}/tcp/{port}")
            announce = listen
        relay = RelayLimits() if role == "relay" else None
        key = SigningKey(bytes([number]) * 32)
        self.transport = Libp2pTransport(key, listen, announce=announce, relay=relay)
        self.transport.handle(ECHO, echo)

    async def reserve(self, relays: list[str]) -> list[str]:
        """Keep places; returns our addresses once they are held."""
        self.roster = RelayRoster(self.transport, relays, lambda: None)
        self.roster.adjust(is_needed=True)
        return await self.wait_held(min(2, len(relays)))

    async def wait_held(self, count: int, without: str = "") -> list[str]:
        """Our addresses once so many places are held, at other relays than `without`."""
        while True:
            held = [place for place in self.roster.places if place.addresses]
            if len(held) >= count and without not in [place.relay for place in held]:
                return [address for place in held for address in place.addresses]
            await trio.sleep(0.05)

    async def talk(self, address: str, text: str) -> dict[str, Any]:
        """Connect, say something and hear it again."""
        began_at = trio.current_time()
        peer = await self.transport.connect(address, timeout_s=WITHIN_S)
        stream = await self.transport.open_stream(peer, ECHO, timeout_s=WITHIN_S)
        await stream.send_all(text.encode())
        heard = b""
        while len(heard) < len(text.encode()):
            heard += await stream.receive_some()
        relay = stream.origin.relay
        await stream.aclose()
        took_s = trio.current_time() - began_at
        return {"heard": heard.decode(), "relay": relay, "took_s": took_s}

    async def wait_direct(self, peer: Any, within_s: float) -> float | None:
        """How long it took until the connection to a peer needed no relay."""
        began_at = trio.current_time()
        with trio.move_on_after(within_s):
            while not self._is_direct(peer):  # noqa: ASYNC110 - no event to wait for
                await trio.sleep(0.02)
            return trio.current_time() - began_at
        return None

    def _is_direct(self, peer: Any) -> bool:
        is_connected = peer in self.transport.connected_peers()
        return is_connected and self.transport.relay_of(peer) is None


async def watch_network(party: Party) -> None:
    """As a node does."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        party.transport.refresh_addresses()


async def main(role: str, number: int) -> None:
    party = Party(role, number)
    async with trio.open_nursery() as nursery:
        await nursery.start(party.transport.run)
        nursery.start_soon(watch_network, party)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            ask = json.loads(line)
            try:
                with trio.fail_after(ask.pop("within_s", WITHIN_S)):
                    answer = await obey(party, ask.pop("do"), ask)
            except (NetError, trio.TooSlowError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        nursery.cancel_scope.cancel()


async def obey(party: Party, do: str, ask: dict[str, Any]) -> Any:
    if do == "addresses":
        return list(party.transport.addresses)
    if do == "reserve":
        return await party.reserve(ask["relays"])
    if do == "held":
        return await party.wait_held(ask["count"], ask.get("without", ""))
    if do == "talk":
        return await party.talk(ask["address"], ask["text"])
    if do == "direct":
        return await party.wait_direct(ask["peer"], ask["direct_within_s"])
    raise ValueError(do)


if __name__ == "__main__":
    # Standard output is for answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main, sys.argv[1], int(sys.argv[2]))

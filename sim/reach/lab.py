"""Whether two parties behind routers reach each other, with and without the relay.

`python -m sim.reach.lab` must run under `unshare -Urnm`; `measure` and `survive` start it so. It
reads what to do from standard input, as JSON, and prints what it saw.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from sim.reach.routers import (
    PUBLIC_6,
    Line,
    RouterKind,
    build_internet,
    build_line,
    in_namespace,
    program_path,
    renumber,
    renumber_router,
)

# Three tries of DCUtR, with their pauses.
DIRECT_WITHIN_S = 16.0
_LAB_WITHIN_S = 300.0
_AT_ONCE = 3
_TRY_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Meeting:
    """A buyer that talked to a node. `direct_after_s` is None if the relay was needed to the end.
    `error` says what failed, if the two could not talk at all."""

    node: RouterKind
    buyer: RouterKind
    began_relayed: bool
    direct_after_s: float | None
    error: str = ""


class RemoteParty:
    """A party's process, and our talk with it."""

    def __init__(self, role: str, namespace: str, number: int) -> None:
        command = [sys.executable, "-m", "sim.reach.party", role, str(number)]
        self._process = subprocess.Popen(
            in_namespace(namespace, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ask(self, do: str, **more: Any) -> Any:
        """Raises LabError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do} | more) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LabError("the party has ended")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise LabError(answer["error"])
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class LabError(Exception):
    """A party could not do what it was asked."""


@contextmanager
def relays(count: int = 1) -> Iterator[list[RemoteParty]]:
    with ExitStack() as stack:
        yield [stack.enter_context(RemoteParty("relay", "", 100 + n)) for n in range(count)]


def meet(number: int, node_router: RouterKind, buyer_router: RouterKind, relay: str) -> Meeting:
    """Put two parties behind routers of their own, and let one call the other."""
    node_line = Line(f"node{number}", node_router, 2 * number + 1)
    buyer_line = Line(f"buyer{number}", buyer_router, 2 * number + 2)
    build_line(node_line)
    build_line(buyer_line)
    with (
        RemoteParty("node", node_line.name, node_line.number) as node,
        RemoteParty("buyer", buyer_line.name, buyer_line.number) as buyer,
    ):
        try:
            address = node.ask("reserve", relays=[relay])[0]
            talk = buyer.ask("talk", address=address, text="hello")
            peer = address.rpartition("/")[2]
            direct_after_s = buyer.ask("direct", peer=peer, direct_within_s=DIRECT_WITHIN_S)
            # Whichever way is used now works, too.
            buyer.ask("talk", address=address, text="hello again")
        except LabError as error:
            return Meeting(node_router, buyer_router, False, None, str(error))
    return Meeting(node_router, buyer_router, talk["relay"] is not None, direct_after_s)


def lose_relay(_: str) -> float:
    """Seconds from a relay's end until a node has a place at another, and is called there."""
    line = Line("node", RouterKind.PORTS_KEPT, 1)
    build_line(line)
    with (
        relays(3) as middle,
        RemoteParty("node", line.name, 1) as node,
        RemoteParty("buyer", "", 2) as buyer,
    ):
        places = [relay.ask("addresses")[0] for relay in middle]
        node.ask("reserve", relays=places)
        middle[0].kill()
        began_at = time.monotonic()
        gone = places[0].rpartition("/")[2]
        address = node.ask("held", count=2, without=gone)[-1]
        buyer.ask("talk", address=address, text="still there?")
        return time.monotonic() - began_at


def change_network(what: str) -> float:
    """Seconds from the moment that a node, or its router, gets another address until a buyer that
    is new reaches it."""
    line = Line("node", RouterKind.PORTS_KEPT, 1)
    build_line(line)
    with (
        relays() as (relay,),
        RemoteParty("node", line.name, 1) as node,
        RemoteParty("buyer", "", 2) as buyer,
    ):
        address = node.ask("reserve", relays=[relay.ask("addresses")[0]])[0]
        began_at = time.monotonic()
        (renumber if what == "node" else renumber_router)(line)
        while True:
            try:
                buyer.ask("talk", address=address, text="still there?", within_s=1.0)
            except LabError:
                time.sleep(_TRY_EVERY_S)
            else:
                return time.monotonic() - began_at


def be_on_ipv6(_: str) -> float:
    """Seconds until a node and a buyer that have no IPv4 have talked, at the node's own address and
    through a relay that has both."""
    node_line = Line("node", RouterKind.IPV6_ONLY, 1)
    buyer_line = Line("buyer", RouterKind.IPV6_ONLY, 2)
    build_line(node_line)
    build_line(buyer_line)
    began_at = time.monotonic()
    with (
        relays() as (relay,),
        RemoteParty("node", node_line.name, 1) as node,
        RemoteParty("buyer", buyer_line.name, 2) as buyer,
        RemoteParty("buyer", buyer_line.name, 3) as other,
    ):
        (own,) = (each for each in node.ask("addresses") if PUBLIC_6 in each)
        assert buyer.ask("talk", address=own, text="hello")["relay"] is None
        (place,) = (each for each in relay.ask("addresses") if PUBLIC_6 in each)
        (held,) = (each for each in node.ask("reserve", relays=[place]) if PUBLIC_6 in each)
        assert other.ask("talk", address=held, text="hello")["relay"] is not None
    return time.monotonic() - began_at


_TASKS = {"be_on_ipv6": be_on_ipv6, "lose_relay": lose_relay, "change_network": change_network}


def survive(task: str, what: str = "") -> float:
    """Seconds, as `lose_relay` and `change_network` say."""
    return float(_in_lab({"task": task, "what": what}))


def measure(pairs: Sequence[tuple[RouterKind, RouterKind]]) -> list[Meeting]:
    """What becomes of each pair (node, buyer)."""
    return [
        Meeting(**(each | {"node": RouterKind(each["node"]), "buyer": RouterKind(each["buyer"])}))
        for each in _in_lab({"task": "meet", "pairs": pairs})
    ]


def _in_lab(ask: dict[str, Any]) -> Any:
    """In namespaces that are gone afterwards. Raises CalledProcessError."""
    done = subprocess.run(
        [program_path("unshare"), "-Urnm", sys.executable, "-m", "sim.reach.lab"],
        input=json.dumps(ask),
        capture_output=True,
        text=True,
        check=True,
        timeout=_LAB_WITHIN_S,
    )
    return json.loads(done.stdout)


def main() -> None:
    ask = json.loads(sys.stdin.read())
    build_internet()
    if ask["task"] == "meet":
        answer: Any = [asdict(each) for each in _meet_all(ask["pairs"])]
    else:
        answer = _TASKS[ask["task"]](ask["what"])
    sys.stdout.write(json.dumps(answer))


def _meet_all(pairs: list[list[str]]) -> list[Meeting]:
    """Several at a time: most of it is waiting."""
    with relays() as (relay,), ThreadPoolExecutor(_AT_ONCE) as threads:
        place = relay.ask("addresses")[0]

        def one(numbered: tuple[int, list[str]]) -> Meeting:
            number, (node, buyer) = numbered
            return meet(number, RouterKind(node), RouterKind(buyer), place)

        return list(threads.map(one, enumerate(pairs)))


if __name__ == "__main__":
    main()

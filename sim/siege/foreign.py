"""B1, B3: links in the model folders of strangers, and addresses in their offers."""

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from capanode.models.catalog import load_catalog
from capanode.models.errors import ModelError
from capanode.models.library import pull
from capanode.models.store import ModelStore
from coordinator.endpoint import Endpoint
from protocol.services import offer_topic, shard_of
from sim.network import NetworkError
from sim.siege.attack import Attack, AttackResult
from sim.siege.books import SiegeBooks
from sim.siege.gateway_user import GatewayUser
from sim.siege.ground import Ground, open_other_coordinator
from sim.siege.peer import open_peer
from sim.siege.staged_job import answer
from sim.siege.staged_node import StagedNode, staged

_SECRET = b"the private key of a node"
_SMALL_MODEL = "efficientnet-lite0"
_ASKS = 4
_READ_BYTES = 4_096
_RUBBISH_WITHIN_S = 4.0
# What a peer says until Noise begins, and then what is no handshake. All listeners are on one
# machine, which is left alone after a few failures.
_AGREED = b"\x13/multistream/1.0.0\n\x07/noise\n"
_RUBBISH = (_AGREED + b"\x00\x00", _AGREED + b"\x00\x60" + bytes(96))
_ODD_NAMES = ("a..b", ".", "☃.net", "\u2028", "x" * 64 + ".example")

_GOSSIP_JOINS_WITHIN_S = 2.0
_GOSSIP_ARRIVES_WITHIN_S = 1.5
# Documentation addresses: nothing is allowed there that an offer could lead to.
_NO_LOOPBACK = "--dial-private=192.0.2.0/24"


async def linked_model(ground: Ground) -> AttackResult:
    """A stranger's model folder has links to a file and a folder of the operator's."""
    place = ground.folder / "b1"
    home = place / "home"
    home.mkdir(parents=True)
    (home / "node.key").write_bytes(_SECRET)
    names = json.loads((ground.model_store / "names.json").read_text())
    if _SMALL_MODEL not in names:
        raise NetworkError(f"{ground.model_store} has no {_SMALL_MODEL}: fill it by `make models`")
    source = ground.model_store / "models" / names[_SMALL_MODEL]
    links: dict[str, dict[str, Path]] = {
        "plain": {},
        "by-file": {"chat_template.jinja": home / "node.key"},
        "by-folder": {"extra": home},
    }
    met = {
        name: await trio.to_thread.run_sync(_pull, source, place / name, linked)
        for name, linked in links.items()
    }
    leaks = [path for path in place.glob("*/store/**/*") if _has_secret(path)]
    return AttackResult(
        held=met["plain"] == "pulled" and not leaks,
        honest_before=f"a folder without links is {met['plain']}",
        honest_under=f"with a linked file {met['by-file']}, with a linked folder "
        f"{met['by-folder']}; the key is "
        f"in {len(leaks)} files of the store",
    )


def _pull(source: Path, place: Path, links: dict[str, Path]) -> str:
    """What becomes of a copy of the model that has these links as well."""
    folder = place / "model"
    shutil.copytree(source, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, target in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    try:
        pull(ModelStore(place / "store"), load_catalog(), f"file:{folder}")
    except ModelError:
        return "refused"
    return "pulled"


def _has_secret(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 4_096 and _SECRET in path.read_bytes()


async def steered_dials(ground: Ground) -> AttackResult:
    """Offers name a service on the coordinator's own loopback; a colluding user asks for it."""
    user = await ground.open_gateway_account()
    control = await _steer(ground.endpoint, user)
    place = ground.folder / "b3"
    place.mkdir()
    async with open_other_coordinator(place, _NO_LOOPBACK) as (endpoint, books):
        under = await _steer(endpoint, await _user_of(endpoint, books))
    return AttackResult(
        held=control > 0 and under == 0,
        honest_before=f"{control} connections to a local service where loopback is allowed",
        honest_under=f"{under} connections where it is not",
    )


async def _user_of(endpoint: Endpoint, books: SiegeBooks) -> GatewayUser:
    return GatewayUser(endpoint.http, *await books.open_custodial())


async def _steer(endpoint: Endpoint, user: GatewayUser) -> int:
    """How many connections the service gets while a user asks for the models of three offers."""
    async with _service() as (port, connections):
        places = (
            f"/ip4/127.0.0.1/tcp/{port}",
            f"/dns4/localhost/tcp/{port}",
            f"/ip6/::ffff:7f00:1/tcp/{port}",
        )
        models = await _offer_elsewhere(endpoint, "b3", places)
        async with trio.open_nursery() as nursery:
            for model in models:
                nursery.start_soon(user.complete, model)
        return len(connections)


async def _offer_elsewhere(endpoint: Endpoint, prefix: str, places: Sequence[str]) -> list[str]:
    """A node offers a model at each place and is gone, so that it has to be dialled there."""
    nodes = [
        StagedNode(f"{prefix}-{number}", answer, address=place)
        for number, place in enumerate(places)
    ]
    async with staged(endpoint, *nodes):
        pass
    # Newer offers, by gossip, say that they can be reached again.
    async with open_peer(endpoint) as peer:
        await trio.sleep(_GOSSIP_JOINS_WITHIN_S)
        for node in nodes:
            topic = offer_topic(shard_of(node.peer_id))
            await peer.transport.publish(topic, node.offer().raw)
        await trio.sleep(_GOSSIP_ARRIVES_WITHIN_S)
    return [f"{prefix}-{number}" for number in range(len(nodes))]


async def hostile_listeners(ground: Ground) -> AttackResult:
    """Offers name hosts that no resolver takes, and listeners that answer a dial with rubbish."""
    user = await ground.open_gateway_account()
    async with staged(ground.endpoint, StagedNode("b3-honest", answer)), _rubbish() as ports:
        before = await user.ask_honestly("b3-honest", _ASKS)
        places = [f"/dns4/{name}/tcp/1" for name in _ODD_NAMES]
        places += [f"/ip4/127.0.0.1/tcp/{port}" for port in ports]
        statuses: set[int] = set()

        async def ask(model: str) -> None:
            statuses.add((await user.complete(model)).status)

        models = await _offer_elsewhere(ground.endpoint, "b3-odd", places)
        async with trio.open_nursery() as nursery:
            for model in models:
                nursery.start_soon(ask, model)
        under = await user.ask_honestly("b3-honest", _ASKS)
    return AttackResult(
        held=before.is_whole and under.is_whole and not statuses & {0, 200, 500},
        honest_before=str(before),
        honest_under=f"{under}; {len(places)} dials to odd places met {sorted(statuses)}",
    )


@asynccontextmanager
async def _rubbish() -> AsyncIterator[list[int]]:
    """Listeners that answer every dial, each with other bytes."""

    def speak(said: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def answer_dial(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError), trio.move_on_after(_RUBBISH_WITHIN_S):
                async with stream:
                    await stream.send_all(said)
                    while await stream.receive_some(_READ_BYTES):
                        pass

        return answer_dial

    async with trio.open_nursery() as nursery:
        ports = []
        for said in _RUBBISH:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, speak(said), [listener])
            ports.append(listener.socket.getsockname()[1])
        yield ports
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _service() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Something that listens on loopback; the list grows with each connection."""
    connections: list[bytes] = []

    async def note(stream: trio.SocketStream) -> None:
        connections.append(b"")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, note, [listener])
        yield listener.socket.getsockname()[1], connections
        nursery.cancel_scope.cancel()


ATTACKS = (
    Attack("hostile-listeners", "B3", "answer dials with rubbish", hostile_listeners),
    Attack("linked-model", "B1", "publish a key by links in a model", linked_model),
    Attack("steered-dials", "B3", "lead dials to local services", steered_dials),
)

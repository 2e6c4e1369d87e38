"""A real node program with real workers, for attacks on what runs inside it.

It has the small language model that chaos makes on the spot, and the embedding model of the demo.
It is started for the first attack that needs it and serves the others, too.
"""

import json
import shutil
from pathlib import Path

import psutil
import trio

from capanode.models.store import ModelStore
from protocol.services import NodesAsk
from sim.chaos.model import NAME as RECITAL_MODEL
from sim.chaos.model import add_recital
from sim.latency import LATENCY_CLASSES
from sim.network import NODE_READY_WITHIN_S, LocalNode, NetworkError, NodePlan
from sim.siege.ground import NODE_STORE, Ground
from sim.siege.peer import open_peer

# Tells what it refuses, as real templates do.
_TELLING_TEMPLATE = (
    "{% for message in messages %}"
    "{% if 'forbidden' in message['content'] %}"
    "{{ raise_exception('this is not answered: ' + message['content']) }}"
    "{% endif %}{{ message['content'] }}{% endfor %}<|answer|>"
)
EMBEDDING = "all-minilm-l6-v2"
# 1,000 nano-credits for each token.
_PRICE = "1"
_POLL_EVERY_S = 0.2


async def real_node(ground: Ground) -> LocalNode:
    """The node, attached and ready. Raises NetworkError."""
    running = [node for node in ground.network.nodes if node.plan.name == _PLAN.name]
    if running:
        return running[0]
    await trio.to_thread.run_sync(_fill_store, ground)
    node = await ground.network.start_node(_PLAN)
    async with open_peer(ground.endpoint) as peer:
        with trio.move_on_after(NODE_READY_WITHIN_S):
            while True:
                page = await peer.leaser.nodes(NodesAsk(RECITAL_MODEL))
                if any(each.node == node.peer_id and each.attached for each in page.nodes):
                    return node
                await trio.sleep(_POLL_EVERY_S)
    raise NetworkError(f"the node did not join:\n{node.process.log_tail()}")


def worker_pids(node: LocalNode) -> frozenset[int]:
    """The processes in sandboxes that run models."""
    return frozenset(
        process.pid
        for process in psutil.Process(node.process.pid).children(recursive=True)
        if "capanode.worker.main" in " ".join(process.cmdline()) and not process.children()
    )


def cpu_s(node: LocalNode) -> float:
    """Of the node and its workers, as far as they still run."""
    parent = psutil.Process(node.process.pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


_PLAN = NodePlan(
    name="real",
    models=(RECITAL_MODEL, EMBEDDING),
    input_per_mtok=_PRICE,
    output_per_mtok=_PRICE,
    image="0.0001",
    latency=LATENCY_CLASSES[0],
    slots=8,
    threads=1,
)


def _fill_store(ground: Ground) -> None:
    """A store of the siege's own, so that the operator's gets no model that he did not ask for."""
    store = ground.folder / NODE_STORE
    add_recital(ModelStore(store), chat_template=_TELLING_TEMPLATE)
    _copy_model(EMBEDDING, ground.model_store, store)


def _copy_model(name: str, source: Path, target: Path) -> None:
    try:
        digest = json.loads((source / "names.json").read_text())[name]
    except (OSError, KeyError):
        raise NetworkError(f"{source} has no {name}: fill it with `make models`") from None
    shutil.copytree(source / "models" / digest, target / "models" / digest)
    names = target / "names.json"
    known = json.loads(names.read_text()) | {name: digest}
    names.unlink()
    names.write_text(json.dumps(known))

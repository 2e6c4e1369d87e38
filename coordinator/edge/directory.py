"""What the markets of a gateway offer: signed offers, asked for every few seconds and kept when a
coordinator is away.

Several coordinators may serve one network: a node that two of them list counts once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coordinator.gateway.market_side.market import ModelInfo
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError
from protocol.features import NODE_FEATURES
from protocol.ids import PeerId
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import PRICE_POSITIONS, sheet_of
from protocol.services import NodeSummary


@dataclass(frozen=True, slots=True)
class ListedNode:
    """A node of a coordinator's list, its own signature checked. `rtt_ms` is the coordinator's."""

    offer: NodeOffer
    is_attached: bool
    rtt_ms: float | None

    @property
    def node(self) -> PeerId:
        return self.offer.node


def read_summaries(summaries: Iterable[NodeSummary]) -> list[ListedNode]:
    """One offer that is not its node's, or that we cannot read, spoils only itself."""
    found = []
    for summary in summaries:
        try:
            offer = open_envelope(summary.offer, NodeOffer, signer=summary.node).message
        except RemoteProtocolError:
            continue
        found.append(ListedNode(offer, summary.attached, summary.rtt_ms))
    return found


def list_models(nodes: Iterable[ListedNode]) -> Mapping[str, ModelInfo]:
    """By name and by manifest digest. Of several models of one name, the one that most nodes offer
    has it, as a catalogue would say: a buyer that wants another one names its digest."""
    by_digest: dict[str, list[tuple[ListedNode, ModelOffer]]] = defaultdict(list)
    for node in {node.node: node for node in nodes}.values():
        for offered in node.offer.models:
            by_digest[offered.manifest_digest].append((node, offered))
    found: dict[str, ModelInfo] = {}
    for digest, offers in sorted(by_digest.items()):
        info = _info_of(offers)
        found[digest] = info
        rival = found.get(info.name)
        if rival is None or info.nodes > rival.nodes:
            found[info.name] = info
    return found


def _info_of(offers: list[tuple[ListedNode, ModelOffer]]) -> ModelInfo:
    """One node's offer stands for what they share; prices and contexts are of all."""
    _, first = offers[0]
    features = {word for _, offered in offers for word in offered.features} - NODE_FEATURES
    quantizations = {offered.quantization for _, offered in offers}
    prices = [offered.price for _, offered in offers]
    columns = [[position.of(price) for price in prices] for position in PRICE_POSITIONS]
    return ModelInfo(
        name=first.name,
        digest=first.manifest_digest,
        task=first.task,
        quantization=first.quantization,
        nodes=sum(node.is_attached for node, _ in offers),
        context_tokens=max(offered.context_tokens for _, offered in offers),
        price_from=sheet_of(map(min, columns)),
        price_to=sheet_of(map(max, columns)),
        first_seen_s=min(node.offer.incarnation_ms for node, _ in offers) // 1_000,
        features=frozenset(features),
        chat_format=first.chat_format,
        dimensions=first.dimensions,
        signature=first.signature,
        quantizations=tuple(sorted(quantizations)),
    )

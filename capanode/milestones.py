"""The steps of a node's start and stop that an operator wants to see, in words and as facts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from capanode.device_problems import DeviceFailure
from capanode.served import ServedModel
from protocol.errors import CapaError
from protocol.ids import PeerId
from protocol.messages import IsolationTier
from protocol.money import format_credits
from protocol.pricing import asked_prices


@dataclass(frozen=True, slots=True)
class Milestone:
    """One step: words for people, facts for programs."""

    name: str
    words: str
    facts: Mapping[str, object] = field(default_factory=dict)


OnMilestone = Callable[[Milestone], None]


def ignore_milestone(milestone: Milestone) -> None:
    """For those who only log."""


def model_loading(name: str) -> Milestone:
    return Milestone("model_loading", f"loading {name}", {"model": name})


def model_measuring(name: str) -> Milestone:
    return Milestone("model_measuring", f"measuring {name}", {"model": name})


def model_checking(name: str) -> Milestone:
    return Milestone("model_checking", f"checking the files of {name}", {"model": name})


def model_failed(name: str, error: CapaError) -> Milestone:
    """The model is left out, the node goes on."""
    facts = {"model": name, "error": str(error)}
    return Milestone("model_failed", f"{name} is not served: {error}", facts)


def model_swapped(name: str, load_s: float, evicted: Sequence[str]) -> Milestone:
    """A job was there for a model that was not in memory."""
    facts = {"model": name, "load_s": round(load_s, 1), "evicted": list(evicted)}
    place = f", in place of {', '.join(evicted)}" if evicted else ""
    return Milestone("model_swapped", f"loaded {name} in {load_s:.1f} s{place}", facts)


def gpu_not_used(failure: DeviceFailure) -> Milestone:
    """A GPU is here that runs no jobs."""
    facts = {"problem": failure.problem.value, "reason": failure.reason}
    return Milestone("gpu_not_used", f"a GPU is not used: {failure}", facts)


def model_ready(model: ServedModel, *, is_proposed: bool) -> Milestone:
    """What it can do, and at which price: the node's own proposal or a configured one."""
    price = {position.name: format_credits(nano) for position, nano in asked_prices(model.price)}
    asked = ", ".join(f"{name} {amount}" for name, amount in price.items()) or "free"
    words = (
        f"{model.name}: {model.seats.slots} slots, {model.speed.prefill_tps}/s in, "
        f"{model.speed.decode_tps}/s out, {model.speed.batched_tps}/s batched; "
        f"{'proposed' if is_proposed else 'configured'} price: {asked}"
    )
    facts = {
        "model": model.name,
        "digest": model.digest,
        "slots": model.seats.slots,
        "prefill_tps": model.speed.prefill_tps,
        "decode_tps": model.speed.decode_tps,
        "batched_tps": model.speed.batched_tps,
        "price": price,
    }
    return Milestone("model_ready", words, facts)


def node_ready(
    peer_id: PeerId, addresses: Sequence[str], models: Sequence[str], isolation: IsolationTier
) -> Milestone:
    """Jobs can come."""
    facts = {
        "peer_id": peer_id,
        "addresses": list(addresses),
        "models": list(models),
        "isolation": isolation.value,
    }
    return Milestone("ready", f"serving at {', '.join(addresses)}", facts)


def draining(jobs: int) -> Milestone:
    """The node takes no more jobs."""
    return Milestone("draining", f"finishing {jobs} job{'s' * (jobs != 1)}", {"jobs": jobs})

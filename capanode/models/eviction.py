"""Which models leave when a new one needs the room that `store_max_gib` gives: those unused for
longest, and never one that a node serves or that the configuration promises. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capanode.models.errors import StoreFullError
from protocol.ids import Digest


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model of the store. `blobs` are its files by digest, with their bytes: models may share
    them. `keep` is why it must stay; empty if it may go."""

    name: str
    digest: Digest
    blobs: Mapping[Digest, int]
    last_used_s: float
    keep: str


def plan_eviction(
    models: Sequence[KeptModel], *, wanted: Mapping[Digest, int], bytes_max: int
) -> list[KeptModel]:
    """The models to remove, so that the store holds at most `bytes_max` with `wanted` in it.

    Raises StoreFullError that says what stays, and why.
    """
    sizes: dict[Digest, int] = dict(wanted)
    users: Counter[Digest] = Counter(wanted.keys())
    for model in models:
        sizes.update(model.blobs)
        users.update(model.blobs.keys())
    total = sum(sizes.values())
    leaving: list[KeptModel] = []
    for model in sorted(models, key=lambda model: model.last_used_s):
        if total <= bytes_max:
            break
        if model.keep:
            continue
        leaving.append(model)
        users.subtract(model.blobs.keys())
        total -= sum(sizes[blob] for blob in model.blobs if users[blob] == 0)
    if total > bytes_max:
        stays = ", ".join(f"{model.name} ({model.keep})" for model in models if model.keep)
        raise StoreFullError(
            f"the new model does not fit: with it the store would hold {total / 1e9:.1f} GB, and "
            f"store_max_gib allows {bytes_max / 1e9:.1f} GB. What stays: {stays or 'nothing'}. "
            "Raise store_max_gib, or list fewer models to serve under [models]"
        )
    return leaving

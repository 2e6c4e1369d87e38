"""Models of a hub that people ask for, by name: what they are and what they need.

Unlike the entries of `capanode.models.catalog` they pin no content. `hub_catalog.json` was written
from memory, where no hub could be reached: its sizes are estimates. What a pull brings is what the
hub has at that revision, and the manifest then says which commit that was.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from capanode.models.errors import SourceError
from capanode.models.memory_need import NO_CACHE, CacheGeometry
from capanode.models.sources import HubSource, parse_source


@dataclass(frozen=True, slots=True)
class HubEntry:
    """`use` is chat, embed or rerank; a gated model wants its licence accepted and a token. `bytes`
    are those of the weights, `parameters` times their width."""

    name: str
    source: HubSource
    use: str
    architecture: str
    parameters: int
    quantization: str
    bytes: int
    context_tokens: int
    licence: str
    is_gated: bool
    cache: CacheGeometry


def load_hub_entries() -> tuple[HubEntry, ...]:
    """Raises SourceError if the file that ships with this version is broken."""
    where = resources.files("capanode.models") / "hub_catalog.json"
    try:
        plain = json.loads(where.read_text(encoding="utf-8"))
        return tuple(_parse_entry(entry) for entry in plain["models"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the catalog {where} cannot be read: {error!r}") from error


def _parse_entry(plain: dict[str, Any]) -> HubEntry:
    source = parse_source(f"hf:{plain['repo']}@{plain['revision']}")
    assert isinstance(source, HubSource), "an hf: source is one of a hub"
    return HubEntry(
        name=plain["name"],
        source=source,
        use=plain["use"],
        architecture=plain["architecture"],
        parameters=plain["parameters"],
        quantization=plain["quantization"],
        bytes=plain["bytes"],
        context_tokens=plain["context_tokens"],
        licence=plain["licence"],
        is_gated=plain["gated"],
        cache=CacheGeometry(**plain["cache"]) if "cache" in plain else NO_CACHE,
    )

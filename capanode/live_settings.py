"""Which settings a running node takes over when its file has changed, and how.

A price holds for the leases that were granted on it: they name the offer that it stood in, which
the node remembers until they have ended (`capanode.announce.OwnOffers`). What is asked from now on
comes from the next offer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from capanode.config import NodeConfig
from capanode.hourly_rates import HourlyRates
from capanode.node import Node, NodeRules
from protocol.programs.settings import settings_of

# All others are built into what the node has started: sockets, workers, keys, what it has promised.
LIVE = frozenset(
    {
        "batch_percent",
        "drain_s",
        "models",
        "per_client_max",
        "price_cpu_core_hour",
        "price_gpu_gib_hour",
        "queue_max",
    }
)


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of settings that differ from those that the node runs with."""

    applied: tuple[str, ...]
    at_restart: tuple[str, ...]


def compare(old: NodeConfig, new: NodeConfig) -> Changes:
    """Of a model only prices can change while it is served."""
    changed = {
        one.name
        for one in settings_of(NodeConfig)
        if getattr(old, one.name) != getattr(new, one.name)
    }
    late = changed - LIVE
    if "models" in changed and _sizes(old) != _sizes(new):
        late.add("models")
    return Changes(tuple(sorted(changed - late)), tuple(sorted(late)))


class LiveSettings:
    """The settings that the node runs with now. `reread` finds those that it should run with."""

    def __init__(
        self, node: Node, config: NodeConfig, *, reread: Callable[[NodeConfig], NodeConfig]
    ) -> None:
        self._node = node
        self._config = config
        self._reread = reread

    def reload(self) -> Mapping[str, object]:
        """Raises SettingError if they cannot be read; then nothing has changed."""
        new = self._reread(self._config)
        changes = compare(self._config, new)
        self._config = replace(
            self._config, **{name: getattr(new, name) for name in changes.applied}
        )
        if changes.applied:
            prices = {model.name: model.price for model in self._config.models}
            self._node.change(live_rules(self._node.rules, self._config), prices)
        return {"applied": changes.applied, "at_restart": changes.at_restart}


def live_rules(rules: NodeRules, config: NodeConfig) -> NodeRules:
    """The rules with what may change at any time as the settings say."""
    return replace(
        rules,
        queue_max=config.queue_max,
        per_client_max=config.per_client_max,
        rates=HourlyRates(config.price_cpu_core_hour, config.price_gpu_gib_hour),
        batch_percent=config.batch_percent,
        drain_s=config.drain_s,
    )


def _sizes(config: NodeConfig) -> list[tuple[str, int | None, int | None]]:
    return [(model.name, model.slots, model.threads) for model in config.models]

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
from capanode.utilization_price import PriceBounds, PricePolicy
from protocol.programs.settings import settings_of

# All others are built into what the node has started: sockets, workers, keys, what it has promised.
LIVE = frozenset(
    {
        "batch_percent",
        "drain_s",
        "gpu_celsius_max",
        "models",
        "per_client_max",
        "price_ceiling_percent",
        "price_cpu_core_hour",
        "price_floor_percent",
        "price_gpu_gib_hour",
        "price_gpu_hour",
        "price_policy",
        "queue_max",
        "schedule",
        "time_zone",
        "update_check",
        "yield_to_owner",
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
    """`config` is what the node runs with now; `reread` finds what it should run with."""

    def __init__(
        self, node: Node, config: NodeConfig, *, reread: Callable[[NodeConfig], NodeConfig]
    ) -> None:
        self._node = node
        self.config = config
        self._reread = reread

    def price_bounds(self) -> PriceBounds | None:
        """None for fixed prices."""
        config = self.config
        if config.price_policy is PricePolicy.FIXED:
            return None
        return PriceBounds(config.price_floor_percent, config.price_ceiling_percent)

    def reload(self) -> Mapping[str, object]:
        """Raises SettingError if they cannot be read; then nothing has changed."""
        new = self._reread(self.config)
        changes = compare(self.config, new)
        self.config = replace(self.config, **{name: getattr(new, name) for name in changes.applied})
        if changes.applied:
            prices = {model.name: model.price for model in self.config.models}
            self._node.change(live_rules(self._node.rules, self.config), prices)
        return {"applied": changes.applied, "at_restart": changes.at_restart}


def live_rules(rules: NodeRules, config: NodeConfig) -> NodeRules:
    """The rules with what may change at any time as the settings say."""
    return replace(
        rules,
        queue_max=config.queue_max,
        per_client_max=config.per_client_max,
        rates=HourlyRates(
            config.price_cpu_core_hour, config.price_gpu_gib_hour, config.price_gpu_hour
        ),
        batch_percent=config.batch_percent,
        drain_s=config.drain_s,
    )


def _sizes(config: NodeConfig) -> list[tuple[str, int | None, int | None, bool]]:
    return [(one.name, one.slots, one.threads, one.keep_loaded) for one in config.models]

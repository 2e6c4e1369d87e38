"""How many buyers reach nodes behind routers, and how many without the relay in the end.

The mix is ours, by what is written of home lines: most routers keep ports, some give each
destination another one; carriers put a router of their own before some; buyers that run servers
have public addresses. Each pair of routers is tried once, on real sockets, and counts by its share.
"""

import sys
from itertools import product
from statistics import median

from sim.bench.catalogue import Figures
from sim.reach.lab import measure, survive
from sim.reach.routers import RouterKind, missing

NODES = {RouterKind.PORTS_KEPT: 0.75, RouterKind.DOUBLE: 0.10, RouterKind.SYMMETRIC: 0.15}
BUYERS = {RouterKind.NONE: 0.25, RouterKind.PORTS_KEPT: 0.60, RouterKind.SYMMETRIC: 0.15}


def run() -> Figures:
    """Empty where this machine cannot build namespaces; standard error says why."""
    reason = missing()
    if reason:
        sys.stderr.write(f"reach: not measured, {reason}\n")
        return {}
    met = measure(list(product(NODES, BUYERS)))
    share = {(node, buyer): NODES[node] * BUYERS[buyer] for node, buyer in product(NODES, BUYERS)}
    reached = [each for each in met if not each.error]
    direct = [each for each in reached if each.direct_after_s is not None]
    return {
        "reachable_share": round(sum(share[each.node, each.buyer] for each in reached), 6),
        "direct_share": round(sum(share[each.node, each.buyer] for each in direct), 6),
        "direct_after_ms_p50": 1000 * median(each.direct_after_s or 0 for each in direct),
        "relay_lost_s": survive("lose_relay"),
        "node_moved_s": survive("change_network", "node"),
        "router_moved_s": survive("change_network", "router"),
    }

"""How long a purchase took, by stage: as a `Server-Timing` header, and in its record.

What nodes and coordinators sign of times is in the books. What the gateway itself measured is kept
here, for the latest purchases of this process.
"""

from collections import OrderedDict
from collections.abc import Mapping

from coordinator.gateway.market_side.running import StartedAnswer
from protocol.envelope import Signed
from protocol.ids import JobId
from protocol.messages import Receipt

# About 10 MB.
_KEPT_MAX = 20_000

Stages = Mapping[str, float]


class Timings:
    """Of the latest purchases: milliseconds by stage."""

    def __init__(self) -> None:
        self._of: OrderedDict[JobId, Stages] = OrderedDict()

    def note(self, job_id: JobId, stages: Stages) -> None:
        self._of[job_id] = stages
        self._of.move_to_end(job_id)
        if len(self._of) > _KEPT_MAX:
            self._of.popitem(last=False)

    def of(self, job_id: JobId) -> Stages:
        """Empty if it is not known."""
        return self._of.get(job_id, {})


def stages_of(
    opened: StartedAnswer,
    *,
    overhead_s: float,
    receipt: Signed[Receipt] | None = None,
    is_whole: bool = False,
) -> Stages:
    """`parse` is the request, until it went to the market; `match` the choice of a node; `hold` the
    turn and the money; `queue` and `node` are the node's words; `dispatch` is the way there and
    back. Without a receipt, `node` is the time to the first output as the gateway saw it."""
    info = opened.info
    match_ms = info.match_us / 1_000
    stages = {
        "parse": max(0.0, 1_000 * overhead_s - info.lease_ms),
        "match": match_ms,
        "hold": max(0.0, info.lease_ms - match_ms),
    }
    if receipt is None:
        return stages | {"node": 1_000 * opened.node_s}
    billed = receipt.message
    # What the gateway measured ends with a whole answer, and with a stream's first output.
    at_node_ms = billed.total_ms if is_whole else billed.first_output_ms
    return stages | {
        "queue": float(billed.queued_ms),
        "dispatch": max(0.0, 1_000 * opened.node_s - at_node_ms),
        "node": float(max(0, billed.total_ms - billed.queued_ms)),
    }


def server_timing(stages: Stages) -> str:
    return ", ".join(f"{name};dur={ms:.3f}" for name, ms in stages.items())

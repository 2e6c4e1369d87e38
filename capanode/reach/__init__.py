"""Whether this node can be reached, how, and what to do if not."""

from capanode.reach.reachability import Reachability
from capanode.reach.status import ReachState, ReachStatus, TriedAddress

__all__ = ["ReachState", "ReachStatus", "Reachability", "TriedAddress"]

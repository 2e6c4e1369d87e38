"""How tests are dealt out to several processes (`pytest -n`)."""

from pathlib import Path

from xdist.scheduler import LoadFileScheduling

from tests.markets import sharing


class SchedulingByMarket(LoadFileScheduling):  # type: ignore[misc]  # It has no types.
    """By file, and files that share a market together: starting one takes half a minute."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        market = sharing(Path(path))
        return path if market is None else f"market {market}"

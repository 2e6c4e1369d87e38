"""A short run of `python -m sim chaos`: real processes, killed and frozen while clients ask."""

from pathlib import Path

import pytest
import trio

from sim.chaos.report import faults, to_json
from sim.chaos.run import ChaosOptions, run_chaos

pytestmark = pytest.mark.slow


def test_kills_and_freezes_lose_no_answer_no_receipt_and_no_money(tmp_path: Path) -> None:
    told: list[str] = []
    options = ChaosOptions(tmp_path, seed=5, lasts_s=20.0, nodes=2)
    figures = to_json(trio.run(run_chaos, options, told.append))
    assert faults(figures) == [], (figures, told)
    assert figures["coordinator_kills"] == figures["node_kills"] == 1
    assert figures["questions"] > 0

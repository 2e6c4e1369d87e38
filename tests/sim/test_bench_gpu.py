"""The benchmark of GPUs, of a tiny model on the processor. In every run of the tests, although it
takes some seconds: it is written on machines that have no GPU, and would rot between two that do.
"""

import pytest
import torch

from sim.bench import gpu
from tests.sim.test_benches import PROMISED


@pytest.mark.skipif(torch.cuda.is_available(), reason="its figures would be of another device")
def test_every_stage_runs_on_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    figures = gpu.run(gpu.SMALL)
    assert PROMISED["gpu"] <= figures.keys()
    failed = {name for name, value in figures.items() if name.endswith("_failed") and value}
    assert not failed, capsys.readouterr().err
    assert figures["same_in_a_batch"] == 1.0
    assert figures["attention_error_fused"] < figures["attention_error_plain"]

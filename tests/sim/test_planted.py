"""A world notices what a fault makes of a program that is not made for it."""

from dataclasses import replace

import pytest

from protocol.programs.runtime import Runtime
from sim.options import NO_FAULTS, Demand, Network, WorldOptions
from sim.world import run_world

pytestmark = pytest.mark.slow

CALM = WorldOptions(
    chaos_s=20.0,
    network=Network(loss=0.0),
    faults=NO_FAULTS,
    demand=Demand(jobs=40, burst=2, cancel_share=0.0, bad_input_share=0.0),
)


def test_a_program_whose_time_jumps_with_its_clock_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = replace(NO_FAULTS, clock_jumps=6, clock_jump_lasts_s=(2.0, 6.0))
    options = replace(CALM, faults=faults)
    assert not run_world(1, options=options).violations
    monkeypatch.setattr(Runtime, "steadied", lambda self: self)
    violations = run_world(1, options=options).violations
    assert any("WORK_IS_PAID" in violation for violation in violations), violations
    assert any("failed with" in violation for violation in violations), violations

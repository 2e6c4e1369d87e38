import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from random import Random

import pytest
import trio

from sim.faults import Fault, FaultKind, carry_out, plan_faults
from sim.options import draw_options
from sim.trace import Trace


@pytest.mark.parametrize("seed", range(10))
def test_every_fault_lies_within_the_chaos_phase(seed: int) -> None:
    options = draw_options(seed)
    faults = plan_faults(options, Random(seed))
    assert list(faults) == sorted(faults, key=lambda fault: fault.at_s)
    assert all(fault.at_s >= 0 for fault in faults)
    assert all(fault.at_s + fault.lasts_s <= options.chaos_s + 1e-9 for fault in faults)
    assert {n for fault in faults for n in fault.nodes} <= set(range(options.nodes))
    assert {n for fault in faults for n in fault.clients} <= set(range(options.clients))
    assert faults == plan_faults(options, Random(seed))


@pytest.mark.parametrize("seed", range(10))
def test_there_is_one_partition_at_a_time(seed: int) -> None:
    faults = plan_faults(draw_options(seed), Random(seed))
    partitions = [fault for fault in faults if fault.kind is FaultKind.PARTITION]
    assert partitions
    for earlier, later in pairwise(partitions):
        assert earlier.at_s + earlier.lasts_s <= later.at_s


async def test_faults_begin_and_end_on_time(autojump_clock: trio.testing.MockClock) -> None:
    log: list[tuple[str, float]] = []
    started_at = trio.current_time()

    @contextmanager
    def switch(fault: Fault) -> Iterator[str]:
        log.append((f"{fault.kind} on", trio.current_time() - started_at))
        yield "somebody"
        log.append((f"{fault.kind} off", trio.current_time() - started_at))

    switches: dict[FaultKind, Callable[[Fault], AbstractContextManager[str]]] = {
        FaultKind.KILL: switch,
        FaultKind.REFUSAL: switch,
    }
    faults = (Fault(FaultKind.KILL, 1.0, 4.0, (0,)), Fault(FaultKind.REFUSAL, 2.0, 1.0, (1,)))
    sink = io.StringIO()
    await carry_out(faults, switches, Trace(trio.current_time, sink=sink))
    assert [what for what, _ in log] == ["kill on", "refusal on", "refusal off", "kill off"]
    assert [at_s for _, at_s in log] == pytest.approx([1.0, 2.0, 3.0, 5.0])
    assert sink.getvalue().count("at=somebody") == 4

"""What a soak makes of its samples, and a short one of real processes."""

import random
from pathlib import Path

import pytest
import trio

from sim.soak.report import growing, to_json, trends
from sim.soak.run import SoakOptions, SoakResult, run_soak
from sim.soak.samples import Sample, sum_tasks
from sim.soak.slopes import trend_of

MIB = 1024**2


def result(memory_per_sample: float = 0.0, tasks_per_sample: float = 0.0) -> SoakResult:
    rng = random.Random(3)
    samples = [
        Sample(
            at_s=5.0 * number,
            memory_bytes=int((100 + memory_per_sample * number + rng.uniform(-1, 1)) * MIB),
            descriptors=40 + rng.choice([-1, 0, 1]),
            threads=9,
            tasks=200 + int(tasks_per_sample * number),
        )
        for number in range(100)
    ]
    return SoakResult(600.0, 5_000, 5_000, {"coordinator": samples})


def test_a_line_goes_through_its_samples() -> None:
    trend = trend_of([10.0, 20.0, 30.0], [1.0, 2.0, 3.0])
    assert [trend.first, trend.last] == pytest.approx([1.0, 3.0])
    assert trend.per_hour == pytest.approx(360.0)
    assert trend.noise == pytest.approx(0.0)
    assert trend_of([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 5.0, 7.0]).noise > 0.8


def test_what_only_trembles_does_not_grow() -> None:
    found = trends(result())
    assert found["coordinator"].keys() == {"memory", "descriptors", "threads", "tasks"}
    assert growing(found) == []


@pytest.mark.parametrize(
    ("leak", "figure"),
    [({"memory_per_sample": 0.1}, "memory"), ({"tasks_per_sample": 0.05}, "tasks")],
)
def test_a_slow_leak_is_seen_through_the_noise(leak: dict[str, float], figure: str) -> None:
    (told,) = growing(trends(result(**leak)))
    assert told.startswith(f"coordinator: {figure} from ")


def test_tasks_of_all_loops_are_summed() -> None:
    text = '# HELP capacloud_tasks x\ncapacloud_tasks{loop="trio"} 80.0\n'
    assert sum_tasks(text + 'capacloud_tasks{loop="asyncio"} 5.0\nother 3.0\n') == 85
    assert sum_tasks("other 3.0\n") is None


@pytest.mark.bench
def test_a_short_soak_samples_every_program(tmp_path: Path) -> None:
    options = SoakOptions(tmp_path, seed=3, lasts_s=10.0, nodes=1)
    figures = to_json(trio.run(run_soak, options, lambda _: None))
    assert figures["programs"].keys() == {"coordinator", "node-1", "node-1 worker"}
    for name, program in figures["programs"].items():
        has_tasks = {"tasks"} if "worker" not in name else set()
        assert program.keys() == {"memory", "descriptors", "threads"} | has_tasks
    assert figures["answered"] == figures["questions"] > 0

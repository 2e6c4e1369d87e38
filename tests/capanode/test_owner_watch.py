"""A node stands back for its schedule, for other programs and for heat, and comes back."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from capanode import machine_use
from capanode.config import NodeConfig
from capanode.machine_use import MachineMeter, MachineUse, others_cpu_s, read_gpus
from capanode.owner_watch import LOOK_EVERY_S, QUIET_LOOKS, OwnerWatch
from capanode.pauses import PauseReason, Pauses
from capanode.stand_back import BUSY_LOOKS, CALM_LOOKS, HeatRule, YieldRule
from protocol.programs.runners import InlineRunner
from tests.clocks import HandClock

BUSY = MachineUse(processor_share=0.9)
GAME = MachineUse(gpu_share=0.6)
CALM = MachineUse(processor_share=0.1, gpu_share=0.05)


@pytest.mark.parametrize("use", [BUSY, GAME])
def test_the_owner_is_back_after_some_looks_and_gone_after_more(use: MachineUse) -> None:
    rule = YieldRule()
    assert [rule.look(use) for _ in range(BUSY_LOOKS)] == [False] * (BUSY_LOOKS - 1) + [True]
    assert [rule.look(CALM) for _ in range(CALM_LOOKS)] == [True] * (CALM_LOOKS - 1) + [False]


def test_a_moment_is_no_owner_and_a_pause_no_leave() -> None:
    rule = YieldRule()
    assert not any(rule.look(use) for use in [BUSY, BUSY, CALM] * 10)
    for _ in range(BUSY_LOOKS):
        rule.look(GAME)
    assert all(rule.look(use) for use in [*[CALM] * (CALM_LOOKS - 1), GAME] * 3)


def test_a_hot_card_gets_no_jobs_until_it_has_cooled_down() -> None:
    rule = HeatRule()
    warmths = [80, 90, 85, 81, 80, 89, None]
    looks = [rule.look(celsius, most_celsius=90) for celsius in warmths]
    assert looks == [False, True, True, True, False, False, False]
    assert not rule.look(120, most_celsius=0)


class World:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.changes: list[bool] = []
        self.use = CALM
        self.config = NodeConfig.resolve(flags={"data_dir": folder, **settings})
        self.pauses = Pauses(lambda: self.changes.append(self.pauses.is_paused))
        self.watch = OwnerWatch(
            self.pauses,
            settings=lambda: self.config,
            read_use=lambda _: self.use,
            clock=HandClock(),
            runner=InlineRunner(),
        )


async def test_a_node_yields_where_its_owner_wants_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    for wanted in ("yes", "no"):
        world = World(tmp_path, yield_to_owner=wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.watch.run)
            world.use = GAME
            await trio.sleep((BUSY_LOOKS + 0.5) * LOOK_EVERY_S)
            assert world.pauses.holds(PauseReason.OTHER_PROGRAMS) == (wanted == "yes")
            world.use = CALM
            await trio.sleep((CALM_LOOKS + 1) * LOOK_EVERY_S)
            assert world.changes == ([True, False] if wanted == "yes" else [])
            nursery.cancel_scope.cancel()


def test_heat_pauses_and_says_how_hot(tmp_path: Path) -> None:
    world = World(tmp_path, gpu_celsius_max="85")
    world.watch.use = MachineUse(gpu_celsius=86)
    world.watch.look()
    assert world.pauses.words == "a GPU is at 86 °C, over 85 °C"
    world.watch.use = MachineUse(gpu_celsius=70)
    world.watch.look()
    assert not world.pauses.is_paused


def test_the_schedule_holds_before_the_first_job_and_can_change(tmp_path: Path) -> None:
    # The clock stands on a weekday.
    world = World(tmp_path, schedule=["sat,sun"], time_zone="UTC")
    assert world.pauses.holds(PauseReason.SCHEDULE)
    assert "sat,sun" in world.pauses.words
    world.config = NodeConfig.resolve(flags={"data_dir": tmp_path})
    world.watch.look()
    assert not world.pauses.is_paused


def test_a_machine_is_quiet_after_a_calm_minute(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(QUIET_LOOKS):
        assert not world.watch.is_quiet
        world.watch.use = CALM
        world.watch.look()
    assert world.watch.is_quiet
    world.watch.use = GAME
    world.watch.look()
    assert not world.watch.is_quiet


def test_this_machine_can_be_read() -> None:
    assert others_cpu_s() > 0
    use = MachineMeter().read(1.0)
    assert 0 <= use.processor_share <= 1
    assert 0 <= use.gpu_share <= 1


class FakeNvml:
    """Two cards as NVML tells of them; the second one cannot say who uses it."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    class Sample:
        def __init__(self, pid: int, used: int, stamp_us: int) -> None:
            self.pid, self.smUtil, self.timeStamp = pid, used, stamp_us

    samples = (Sample(1, 90, 1), Sample(1, 20, 60_000_000), Sample(2, 70, 60_000_000))

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTemperature(self, card: int, _sensor: int) -> int:
        return 61 + card

    def nvmlDeviceGetProcessUtilization(self, card: int, since_us: int) -> list[Sample]:
        if card:
            raise self.NVMLError("not supported")
        return [sample for sample in self.samples if sample.timeStamp >= since_us]


def test_a_cards_use_is_what_other_processes_took_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_use, "pynvml", FakeNvml())
    assert read_gpus(frozenset({2})) == (0.2, 62)
    assert read_gpus(frozenset({1, 2})) == (0.0, 62)

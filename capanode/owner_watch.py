"""Pauses the node by the clock and by what else happens on the machine, and lets it come back."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import structlog
import trio

from capanode.config import NodeConfig
from capanode.machine_use import MachineUse
from capanode.pauses import PauseReason, Pauses
from capanode.schedule import find_zone, is_open
from capanode.stand_back import HeatRule, YieldRule
from protocol.clock import Clock
from protocol.programs.runners import Runner

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
# Looks of the last minute: what else the machine does then is no passing matter.
QUIET_LOOKS = 12
QUIET_SHARE = 0.15


class OwnerWatch:
    """`settings` are asked for at each look, because they may change; `read_use` blocks for
    milliseconds and is given the time since the last look."""

    def __init__(
        self,
        pauses: Pauses,
        *,
        settings: Callable[[], NodeConfig],
        read_use: Callable[[float], MachineUse],
        clock: Clock,
        runner: Runner,
    ) -> None:
        self._pauses = pauses
        self._settings = settings
        self._read_use = read_use
        self._clock = clock
        self._runner = runner
        self._yield = YieldRule()
        self._heat = HeatRule()
        self._quiet_looks = 0
        self.use = MachineUse()
        # Before the first job, not some seconds after it.
        self._look_at_clock(settings())

    @property
    def is_quiet(self) -> bool:
        """Whether other programs have left the machine alone for a minute."""
        return self._quiet_looks >= QUIET_LOOKS

    async def run(self) -> None:
        """Until cancelled."""
        looked_at = trio.current_time()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = trio.current_time()
            passed_s, looked_at = now - looked_at, now
            self.use = await self._runner.run_read(partial(self._read_use, passed_s))
            self.look()

    def look(self) -> None:
        """Decide by the clock and by the last `use`."""
        config, use = self._settings(), self.use
        is_calm = max(use.processor_share, use.gpu_share) <= QUIET_SHARE
        self._quiet_looks = self._quiet_looks + 1 if is_calm else 0
        self._look_at_clock(config)
        is_taken = self._yield.look(use) and config.yield_to_owner
        self._set(PauseReason.OTHER_PROGRAMS, is_taken, "other programs use this machine")
        most = config.gpu_celsius_max
        words = f"a GPU is at {use.gpu_celsius} °C, over {most} °C"
        self._set(PauseReason.HEAT, self._heat.look(use.gpu_celsius, most_celsius=most), words)

    def _look_at_clock(self, config: NodeConfig) -> None:
        now = datetime.fromtimestamp(self._clock.now_ms() / 1_000, UTC)
        local = now.astimezone(find_zone(config.time_zone))
        is_closed = not is_open(config.schedule, local)
        windows = ", ".join(map(str, config.schedule))
        self._set(PauseReason.SCHEDULE, is_closed, f"outside its schedule ({windows})")

    def _set(self, reason: PauseReason, is_paused: bool, words: str) -> None:
        if is_paused == self._pauses.holds(reason):
            return
        log.info("node_paused" if is_paused else "pause_ended", reason=reason.value, why=words)
        if is_paused:
            self._pauses.set(reason, words)
        else:
            self._pauses.clear(reason)

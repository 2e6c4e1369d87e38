"""What other programs take of this machine, and how hot its GPUs are, read now.

The processor by the kernel's counters, GPUs by NVML. What cannot be read counts as nothing: a
machine without NVML has no GPU that could be hot or taken.
"""

import os
from dataclasses import dataclass

import psutil
import pynvml

# NVML says what each process did since so long ago.
_LOOK_BACK_US = 10_000_000


@dataclass(frozen=True, slots=True)
class MachineUse:
    """`processor_share` and `gpu_share` (of the busiest card) are what other programs took lately,
    0 … 1; `gpu_celsius` is the hottest card, None if none says."""

    processor_share: float = 0.0
    gpu_share: float = 0.0
    gpu_celsius: int | None = None


def others_cpu_s() -> float:
    """Processor time that other programs have taken since the machine started, as seconds of the
    whole machine. It may step back by what a process of ours did that has ended."""
    total = psutil.cpu_times()
    idle = total.idle + getattr(total, "iowait", 0.0)
    # A guest's time is in `user` already.
    guests = getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)
    busy = sum(total) - idle - guests
    return (busy - _our_cpu_s()) / (os.cpu_count() or 1)


class MachineMeter:
    """Shares since the last `read`."""

    def __init__(self) -> None:
        self._cpu_s = others_cpu_s()

    def read(self, passed_s: float) -> MachineUse:
        """`passed_s` is the time since the last call. Blocks for milliseconds."""
        before, self._cpu_s = self._cpu_s, others_cpu_s()
        share = (self._cpu_s - before) / max(passed_s, 1e-3)
        gpu_share, celsius = read_gpus(_our_pids())
        return MachineUse(min(max(share, 0.0), 1.0), gpu_share, celsius)


def read_gpus(ours: frozenset[int]) -> tuple[float, int | None]:
    """What processes other than these took of the busiest card, and how warm the hottest is."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0.0, None
    try:
        cards = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        shares = [_others_share(card, ours) for card in cards]
        warmths = [found for card in cards if (found := _celsius(card)) is not None]
    except pynvml.NVMLError:
        return 0.0, None
    finally:
        pynvml.nvmlShutdown()
    return max(shares, default=0.0), max(warmths, default=None)


def _others_share(card: object, ours: frozenset[int]) -> float:
    try:
        newest_us = _newest_sample_us(card)
        samples = pynvml.nvmlDeviceGetProcessUtilization(card, max(0, newest_us - _LOOK_BACK_US))
    except pynvml.NVMLError:
        # Nothing ran lately, or this card does not say who did.
        return 0.0
    latest: dict[int, int] = {sample.pid: sample.smUtil for sample in samples}
    percent = sum(used for pid, used in latest.items() if pid and pid not in ours)
    return min(percent / 100, 1.0)


def _newest_sample_us(card: object) -> int:
    samples = pynvml.nvmlDeviceGetProcessUtilization(card, 0)
    return max((int(sample.timeStamp) for sample in samples), default=0)


def _celsius(card: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return None


def _our_processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _our_pids() -> frozenset[int]:
    return frozenset(process.pid for process in _our_processes())


def _our_cpu_s() -> float:
    spent = 0.0
    for process in _our_processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent

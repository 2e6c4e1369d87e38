"""How fast a model runs here: measured on its own worker before the node offers it, and kept.

What is measured goes into the offer as a claim, and into the price. Several measurements are kept
by model, hardware and version, each with what other programs took of the processor meanwhile: the
best recent one counts, and one that was disturbed is replaced when the machine is quiet
(`capanode.remeasure`). The jobs that are timed are in `capanode.measurements`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from capanode.errors import BenchmarkError
from capanode.measurements import Speed
from capanode.models.files import write_durably
from capanode.tasks import NODE_TASKS
from capanode.worker.jobs import JobWorker
from protocol.ids import Digest
from protocol.offers import Hardware

log = structlog.get_logger(__name__)

# A slow machine with a large model does a few tokens a second; below that it cannot be sold anyway.
WITHIN_S = 120.0

# Enough to get over a bad one, few enough that a machine which became slower is believed soon.
KEPT_MAX = 5
# What ran a month ago may have been another driver, another cooling, another season.
RECENT_MS = 30 * 24 * 3_600 * 1_000
# Models come and go; each has a few hundred bytes.
KEYS_MAX = 256
# Other programs that take more than this of the processor disturb a measurement.
QUIET_SHARE = 0.2

_PRIVATE_FILE = 0o600


async def measure_speed(worker: JobWorker) -> Speed:
    """Raises BenchmarkError if the model does not answer."""
    info = worker.info
    assert info is not None, "a worker is measured after it was ready"
    try:
        with trio.fail_after(WITHIN_S):
            return await NODE_TASKS[info.task].measure(worker, info)
    except trio.TooSlowError:
        raise BenchmarkError(
            f"the model did not get through its benchmark within {WITHIN_S:.0f} s: this machine "
            "is too slow for it, or too busy"
        ) from None


@dataclass(frozen=True, slots=True)
class Measurement:
    """`others_share` is what other programs took of the processor meanwhile, 0 … 1."""

    speed: Speed
    at_ms: int
    others_share: float

    @property
    def is_quiet(self) -> bool:
        return self.others_share <= QUIET_SHARE


class SpeedCache:
    """Measurements in one small file. A damaged file is measured anew, not an error.

    `others_cpu_s` is the processor time that other programs have taken so far, as a share of the
    whole machine: the difference over a time is their share of it.
    """

    def __init__(
        self, path: Path | None, *, others_cpu_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._path = path
        self._others_cpu_s = others_cpu_s
        self._kept: dict[str, list[Measurement]] = {}
        if path is not None:
            self._kept = _load(path)

    async def measure(self, key: str, worker: JobWorker, *, now_ms: int) -> Measurement:
        """Raises BenchmarkError. Nothing is kept before `keep`."""
        began_s, began_cpu_s = trio.current_time(), self._others_cpu_s()
        speed = await measure_speed(worker)
        took_s = max(trio.current_time() - began_s, 1e-3)
        share = (self._others_cpu_s() - began_cpu_s) / took_s
        return Measurement(speed, now_ms, round(min(max(share, 0.0), 1.0), 3))

    def find(self, key: str, *, now_ms: int) -> Speed | None:
        """The best recent measurement, of a quiet machine if there is one."""
        kept = self._kept.get(key, [])
        recent = [each for each in kept if now_ms - each.at_ms <= RECENT_MS] or kept
        chosen = [each for each in recent if each.is_quiet] or recent
        if not chosen:
            return None
        return max(chosen, key=lambda each: (each.speed.batched_tps, each.speed.decode_tps)).speed

    def is_settled(self, key: str) -> bool:
        """False while every measurement was disturbed."""
        return any(each.is_quiet for each in self._kept.get(key, []))

    def keep(self, key: str, measurement: Measurement) -> None:
        self._kept[key] = [*self._kept.pop(key, []), measurement][-KEPT_MAX:]
        while len(self._kept) > KEYS_MAX:
            del self._kept[next(iter(self._kept))]
        self._save()

    def doubt(self, key: str) -> None:
        """Real jobs contradict what was measured: the next measurement replaces all before it."""
        kept = self._kept.get(key, [])
        # They are used until then.
        self._kept[key] = [Measurement(each.speed, 0, 1.0) for each in kept[-1:]]
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            plain = {key: [_plain(each) for each in kept] for key, kept in self._kept.items()}
            write_durably(self._path, json.dumps(plain, indent=2).encode(), mode=_PRIVATE_FILE)


def speed_key(model: Digest, hardware: Hardware, *, slots: int, threads: int, software: str) -> str:
    """What a measurement depends on."""
    facts = (model, hardware.kind, hardware.name, hardware.count, slots, threads, software)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _plain(measurement: Measurement) -> dict[str, Any]:
    told = {"at_ms": measurement.at_ms, "others_share": measurement.others_share}
    return asdict(measurement.speed) | told


def _load(path: Path) -> dict[str, list[Measurement]]:
    try:
        plain = json.loads(path.read_bytes())
        return {str(key): _read(kept) for key, kept in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        log.warning("benchmarks_unreadable", path=str(path), error=str(error))
        return {}


def _read(kept: Any) -> list[Measurement]:
    """Older versions kept one, without a word on what else the machine did."""
    if isinstance(kept, dict):
        return [Measurement(Speed(**kept), 0, 1.0)]
    return [
        Measurement(
            Speed(each["prefill_tps"], each["decode_tps"], each["batched_tps"]),
            int(each["at_ms"]),
            float(each["others_share"]),
        )
        for each in kept[-KEPT_MAX:]
    ]

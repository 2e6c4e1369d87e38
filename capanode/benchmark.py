"""How fast a model runs here: measured on its own worker before the node offers it, and kept.

What is measured goes into the offer as a claim, and into the price. It need not be exact: markets
correct claims by what clients see. It is kept by model, hardware and version, so that a restart
does not measure again. The jobs that are timed are in `capanode.measurements`.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

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


class SpeedCache:
    """Measured speeds in one small file. A damaged file is measured anew, not an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._speeds: dict[str, Speed] = {}
        if path is not None:
            self._speeds = _load(path)

    def find(self, key: str) -> Speed | None:
        return self._speeds.get(key)

    def keep(self, key: str, speed: Speed) -> None:
        self._speeds[key] = speed
        if self._path is not None:
            plain = {key: asdict(speed) for key, speed in self._speeds.items()}
            write_durably(self._path, json.dumps(plain, indent=2).encode(), mode=_PRIVATE_FILE)


def speed_key(model: Digest, hardware: Hardware, *, slots: int, threads: int, software: str) -> str:
    """What a measurement depends on."""
    facts = (model, hardware.kind, hardware.name, hardware.count, slots, threads, software)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _load(path: Path) -> dict[str, Speed]:
    try:
        plain = json.loads(path.read_bytes())
        return {str(key): Speed(**value) for key, value in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("benchmarks_unreadable", path=str(path), error=str(error))
        return {}

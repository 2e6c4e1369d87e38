"""What a node knows of its cold models from earlier runs, so that it need not load them to offer
them: what their engine can do, and how long the load took. Their speed is in
`capanode.benchmark.SpeedCache`.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import structlog

from capanode.engines.base import EngineInfo
from capanode.models.files import write_durably
from capanode.workers import ModelPlan
from protocol.codec import decode, encode
from protocol.errors import RemoteProtocolError

log = structlog.get_logger(__name__)

# Models come and go; each has a few hundred bytes.
KEYS_MAX = 256
_PRIVATE_FILE = 0o600
_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class KnownLoad:
    """`load_ms` is how long the model took to be ready for jobs."""

    info: EngineInfo
    load_ms: int


class LoadCache:
    """One small file. What is damaged is measured anew, not an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, KnownLoad] = {} if path is None else _read(path)

    def find(self, key: str) -> KnownLoad | None:
        return self._known.get(key)

    def keep(self, key: str, known: KnownLoad) -> None:
        self._known.pop(key, None)
        self._known[key] = known
        while len(self._known) > KEYS_MAX:
            del self._known[next(iter(self._known))]
        if self._path is not None:
            plain = {
                each: {"info": base64.b64encode(encode(one.info)).decode(), "load_ms": one.load_ms}
                for each, one in self._known.items()
            }
            write_durably(self._path, json.dumps(plain, indent=2).encode(), mode=_PRIVATE_FILE)


def load_key(plan: ModelPlan, *, software: str) -> str:
    """What an engine's description depends on."""
    hardware = None if plan.hardware is None else (plan.hardware.kind, plan.hardware.name)
    # What is free of a card differs a little with every start, and little of the engine with it.
    promised_gib = 0 if plan.promise is None else round(plan.promise.allocated_bytes / _GIB)
    facts = (plan.digest, hardware, promised_gib, plan.slots, plan.threads, software)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read(path: Path) -> dict[str, KnownLoad]:
    try:
        plain = json.loads(path.read_bytes())
        return {
            str(key): KnownLoad(
                decode(EngineInfo, base64.b64decode(one["info"])), int(one["load_ms"])
            )
            for key, one in plain.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RemoteProtocolError) as error:
        log.warning("load_times_unreadable", path=str(path), error=str(error))
        return {}

"""What happened in a simulated world, one line per event, in order and in virtual time.

Two runs of one seed must write the same bytes, in any process: so nothing here reads a clock of its
own, and what programs log becomes part of the trace. The digest is the short form of that promise.
"""

import hashlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from structlog._config import BoundLoggerLazyProxy

from protocol.ids import PeerId
from protocol.net.serve import describe

# Below this programs tell themselves; above it they tell an operator, who would see it here.
_LEVEL = 20
# The name of the context variable; every task that a party starts inherits it.
_VOICE = "voice"


class Trace:
    """Numbers nothing and keeps nothing but counts: lines go to `sink` and into the digest."""

    def __init__(self, now_s: Callable[[], float], *, sink: TextIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        # Events that no party logs in a world of honest parties, as whole lines with tracebacks.
        self.alarms: list[str] = []
        self._now_s = now_s
        self._sink = sink
        self._digest = hashlib.sha256()
        self._names: dict[str, str] = {}

    @property
    def lines(self) -> int:
        return self.counts.total()

    def name(self, peer: PeerId, name: str) -> None:
        """Write `name` for this peer id from now on: a trace is read by people."""
        self._names[peer] = name

    def add(self, party: str, event: str, **fields: object) -> None:
        """One event of one party."""
        self.counts[event] += 1
        told = " ".join(f"{key}={self._plain(value)}" for key, value in fields.items())
        line = f"{self._now_s():10.3f} {party:<12} {event:<24} {told}".rstrip() + "\n"
        self._digest.update(line.encode())
        if self._sink is not None:
            self._sink.write(line)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    @contextmanager
    def logs_captured(self) -> Iterator[None]:
        """What programs log in here becomes part of the trace, and goes nowhere else."""
        forget_cached_loggers()
        before = structlog.get_config()
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, self._take_log],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVEL),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.configure(**before)

    def _take_log(
        self, _logger: object, method: str, entry: MutableMapping[str, Any]
    ) -> Mapping[str, Any]:
        voice = entry.pop(_VOICE, _NOBODY)
        if voice.is_mute:
            raise structlog.DropEvent
        party, event = voice.name, entry.pop("event")
        failure = entry.pop("exc_info", None)
        if isinstance(failure, BaseException):
            entry["failure"] = describe(failure)
        if method in ("error", "critical", "exception"):
            self.alarms.append(_alarm(party, event, entry, failure))
        self.add(party, event, **entry)
        raise structlog.DropEvent

    def _plain(self, value: object) -> str:
        """Names for peer ids, wherever they stand in a text."""
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if "12D3" in text:
            for peer, name in self._names.items():
                text = text.replace(peer, name)
        return text


class Voice:
    """Whose a log line is. A process that was killed logs nothing more: its voice is mute."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_mute = False

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """What is logged inside, and by tasks started inside, is this party's."""
        with structlog.contextvars.bound_contextvars(**{_VOICE: self}):
            yield


_NOBODY = Voice("-")


def forget_cached_loggers() -> None:
    """Modules' loggers that were used while a program was configured to cache them keep its
    configuration for good: what ran earlier in this process would make gaps in the trace."""
    for module in tuple(sys.modules.values()):
        # Not `module.log`: some import or warn when they are asked for what they do not hold.
        logger = getattr(module, "__dict__", {}).get("log")
        if isinstance(logger, BoundLoggerLazyProxy):
            logger.__dict__.pop("bind", None)


def _alarm(party: str, event: str, entry: Mapping[str, Any], failure: BaseException | None) -> str:
    told = " ".join(f"{key}={value}" for key, value in entry.items())
    line = f"{party} logged {event} {told}"
    if failure is None:
        return line
    return line + "\n" + "".join(traceback.format_exception(failure))

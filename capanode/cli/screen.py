"""What `capanode start` prints while the node runs."""

import json
from dataclasses import asdict

import structlog
import trio

from capanode.milestones import Milestone
from capanode.outbox_store import WAITING
from capanode.status import NodeStatus
from protocol.money import format_credits
from protocol.programs.commands import drop_stdout

log = structlog.get_logger(__name__)

# A script or a log file gets a line a minute, a terminal one that changes in place every second.
_LINE_EVERY_S = 60.0
_CLEAR_LINE = "\r\x1b[2K"


class JsonLines:
    """For scripts: `{"event": …}` per milestone, and the whole status once a minute."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def milestone(self, milestone: Milestone) -> None:
        self._print({"event": milestone.name, **milestone.facts})

    def status(self, status: NodeStatus) -> None:
        if trio.current_time() >= self._next_at:
            self._next_at = trio.current_time() + _LINE_EVERY_S
            self._print({"event": "status", **asdict(status)})

    def close(self) -> None:
        self._print({"event": "stopped"})

    def _print(self, value: object) -> None:
        _show(json.dumps(value, ensure_ascii=False))


class Screen:
    """For people: milestones as lines, and below them one line that is kept up to date."""

    def __init__(self, *, on_terminal: bool) -> None:
        self._on_terminal = on_terminal
        self._next_at = 0.0
        self._last = ""

    def milestone(self, milestone: Milestone) -> None:
        _show(f"{_CLEAR_LINE if self._on_terminal else ''}{milestone.words}")
        if milestone.name == "ready":
            _show(f"peer id {milestone.facts['peer_id']}; Ctrl-C stops the node")

    def status(self, status: NodeStatus) -> None:
        line = status_line(status)
        if self._on_terminal:
            _show(f"{_CLEAR_LINE}{line}", end="")
        elif line != self._last and trio.current_time() >= self._next_at:
            self._next_at = trio.current_time() + _LINE_EVERY_S
            self._last = line
            _show(line)

    def close(self) -> None:
        _show(f"{_CLEAR_LINE if self._on_terminal else ''}stopped")


def _show(text: str, *, end: str = "\n") -> None:
    """A reader that went away, or a full disk, does not end a node that has jobs."""
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        drop_stdout()
        log.warning("output_closed", error=error.strerror)


def status_line(status: NodeStatus) -> str:
    """The node in one line."""
    running = sum(model.running for model in status.models)
    queued = sum(model.queued for model in status.models)
    slots = sum(model.slots for model in status.models)
    rate = sum(model.tokens_per_s for model in status.models)
    attached = sum(c.state == "attached" for c in status.coordinators)
    earned = sum(e.amount_nano for e in status.earnings if e.state not in ("refused", WAITING))
    waiting = sum(earning.jobs for earning in status.earnings if earning.state == WAITING)
    parts = [
        f"{running}/{slots} running, {queued} queued",
        f"{rate:.0f} tokens/s",
        f"{attached}/{len(status.coordinators)} coordinators",
        f"{format_credits(earned)} credits handed in",
    ]
    if waiting:
        parts.append(f"{waiting} receipts waiting")
    if status.uploading:
        parts.append(f"{status.uploading} uploading")
    if status.draining:
        parts.insert(0, "draining")
    return "  ·  ".join([*parts, *(f"! {warning}" for warning in status.warnings)])

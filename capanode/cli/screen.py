"""What `capanode start` prints where it is not at a terminal."""

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

# For a script or a log file; a terminal has the whole status (`capanode.cli.live_screen`).
_LINE_EVERY_S = 60.0


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

    def release(self) -> None:
        """It holds no terminal."""

    def _print(self, value: object) -> None:
        _show(json.dumps(value, ensure_ascii=False))


class Screen:
    """For people who keep what it prints: milestones as lines, and the state in a line a minute."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._last = ""

    def milestone(self, milestone: Milestone) -> None:
        _show(milestone.words)
        if milestone.name == "ready":
            _show(f"peer id {milestone.facts['peer_id']}; Ctrl-C stops the node")

    def status(self, status: NodeStatus) -> None:
        line = status_line(status)
        if line != self._last and trio.current_time() >= self._next_at:
            self._next_at = trio.current_time() + _LINE_EVERY_S
            self._last = line
            _show(line)

    def close(self) -> None:
        _show("stopped")

    def release(self) -> None:
        """It holds no terminal."""


def _show(text: str) -> None:
    """A reader that went away, or a full disk, does not end a node that has jobs."""
    try:
        print(text, flush=True)
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
    waiting = sum(earning.jobs for earning in status.earnings if earning.state == WAITING)
    parts = [
        f"{running}/{slots} running, {queued} queued",
        f"{rate:.0f} tokens/s",
        f"{attached}/{len(status.coordinators)} coordinators",
        f"{format_credits(status.paid.today_nano)} credits today",
        f"{format_credits(status.paid.all_nano)} in all",
    ]
    if waiting:
        parts.append(f"{waiting} receipts waiting")
    if status.uploading:
        parts.append(f"{status.uploading} uploading")
    if status.draining:
        parts.insert(0, "draining")
    elif status.paused:
        parts.insert(0, f"paused: {status.paused}")
    return "  ·  ".join([*parts, *(f"! {warning}" for warning in status.warnings)])

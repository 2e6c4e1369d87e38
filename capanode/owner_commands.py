"""What the owner can tell a running node at its socket: pause, resume, drain, measure, reload."""

from collections.abc import Callable, Mapping
from typing import Any

from capanode.config import DRAIN_S_MAX
from capanode.errors import OwnerCommandError
from capanode.node import Node
from capanode.pauses import OwnerPause

Answer = dict[str, object]


class OwnerCommands:
    """Each command is quick and answers with what is so now. `reload` reads the settings again."""

    def __init__(
        self, node: Node, pause: OwnerPause, *, reload: Callable[[], Mapping[str, object]]
    ) -> None:
        self._node = node
        self._pause = pause
        self._reload = reload

    def run(self, name: str, asked: Mapping[str, Any]) -> Answer:
        """Raises NodeError of many kinds, each for the owner."""
        match name:
            case "pause":
                self._pause.pause()
            case "resume":
                self._pause.resume()
            case "drain":
                self._node.stop(within_s=_within_s(asked), for_good=True)
            case "measure":
                for model in self._node.models.values():
                    self._node.doubt_speed(model)
            case "reload":
                return dict(self._reload())
            case _:
                raise OwnerCommandError(f"this node knows no command {name[:40]!r}: restart it")
        return {
            "paused": self._node.pauses.words,
            "draining": self._node.is_stopping,
            "running": self._node.jobs.live_jobs,
        }


def _within_s(asked: Mapping[str, Any]) -> float:
    within_s = asked.get("within_s", DRAIN_S_MAX)
    if type(within_s) is not int or not 0 <= within_s <= DRAIN_S_MAX:
        raise OwnerCommandError(f"a drain takes 0 to {DRAIN_S_MAX} seconds")
    return within_s

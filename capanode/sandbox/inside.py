"""What a confined program knows of its surroundings, read from the environment that `spawn` set.

Standard library only: imported before the limits are in force.
"""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from capanode.sandbox.limits import Limits
from capanode.sandbox.opening import SandboxOpening


@dataclass(frozen=True, slots=True)
class Surroundings:
    channel_fd: int
    model_dir: Path
    scratch_dir: Path
    limits: Limits
    opening: SandboxOpening

    def open_channel(self) -> socket.socket:
        # Family and type are given because asking the kernel for them is not allowed here.
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=self.channel_fd)


def read_surroundings() -> Surroundings:
    settings = os.environ
    return Surroundings(
        channel_fd=int(settings["CAPANODE_CHANNEL_FD"]),
        model_dir=Path(settings["CAPANODE_MODEL_DIR"]),
        scratch_dir=Path(settings["CAPANODE_SCRATCH_DIR"]),
        limits=Limits(**json.loads(settings["CAPANODE_LIMITS"])),
        opening=SandboxOpening(settings["CAPANODE_OPENING"]),
    )

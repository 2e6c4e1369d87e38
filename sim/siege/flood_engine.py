"""An engine that was taken over: it talks to its node without end. Runs inside the sandbox.

The file `behaviour` in the model's folder says how: `quiet`, `frames`, `lines` or `descriptors`.
"""

import array
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from capanode.engines.base import EngineEvent, EngineInfo, EngineInput
from protocol.messages import Task

_BEGINS_AFTER_S = 0.5
_FRAME = struct.pack(">II", 3, 0) + b"\x92\x11\x90"  # [17, []]
_LINE = b'{"event":"x","a":' + b"[" * 900 + b"]" * 900 + b"}\n"


class FloodEngine:
    def __init__(self, behaviour: str, slots: int) -> None:
        self.info = EngineInfo(Task.CAUSAL_LM, slots, 1_024, "none")
        self.is_idle = True
        if behaviour != "quiet":
            threading.Thread(target=_flood, args=(behaviour,), daemon=True).start()

    @classmethod
    def load(cls, model_dir: Path, *, slots: int, threads: int, device: str) -> "FloodEngine":
        return cls((model_dir / "behaviour").read_text(), slots)

    def slow_reading(self, job_input: EngineInput) -> None:
        """Nothing is read here."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Never called: nothing is bought here."""

    def cancel(self, job_id: str) -> None:
        """Never called."""

    def step(self) -> Sequence[EngineEvent]:
        return []


def _flood(behaviour: str) -> None:
    time.sleep(_BEGINS_AFTER_S)
    channel = int(os.environ["CAPANODE_CHANNEL_FD"])
    while True:
        if behaviour == "frames":
            os.write(channel, 500 * _FRAME)
        elif behaviour == "lines":
            os.write(2, 100 * _LINE)
        else:
            _send_descriptors(channel)


def _send_descriptors(channel: int) -> None:
    with socket.socket(fileno=os.dup(channel)) as sender:
        passed = array.array("i", [0] * 50)
        sender.sendmsg([_FRAME], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])

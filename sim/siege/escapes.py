"""Runs inside a sandbox in place of a worker, and tries to reach the host without a network.

`python -m sim.siege.escapes JSON` does the same without a sandbox, and prints instead of sending.
"""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable

from capanode.sandbox.inside import read_surroundings
from capanode.sandbox.limits import apply_limits

MESSAGE = b"out of the sandbox"
_F_SETSIG = 10


def main() -> None:
    order = json.loads(sys.argv[1])
    if order.get("is_free"):
        sys.stdout.write(json.dumps(attempt_all(order)) + "\n")
        return
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    channel.sendall(json.dumps(attempt_all(order)).encode() + b"\n")


def attempt_all(order: dict[str, str]) -> dict[str, str]:
    """By name, the error that each attempt met; empty where it worked."""
    node_pid, number = int(order["node_pid"]), int(order["signal"])
    attempts: dict[str, Callable[[], object]] = {
        "socket file": lambda: _send(order["path"]),
        "abstract socket": lambda: _send("\0" + order["abstract"]),
        "socket pair": lambda: _send_from_pair(order["path"]),
        "signal": lambda: os.kill(node_pid, number),
        "signal by descriptor": lambda: _signal_by_descriptor(node_pid, number),
    }
    return {name: _attempt(action) for name, action in attempts.items()}


def _attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _send(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(MESSAGE, address)


def _send_from_pair(path: str) -> None:
    """A pair needs no `socket` call, and one end may still send elsewhere."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(MESSAGE, path)


def _signal_by_descriptor(node_pid: int, number: int) -> None:
    """The kernel sends a signal to a descriptor's owner when data arrives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.fcntl(ours, fcntl.F_SETOWN, node_pid)
        fcntl.fcntl(ours, _F_SETSIG, number)
        flags = fcntl.fcntl(ours, fcntl.F_GETFL)
        fcntl.fcntl(ours, fcntl.F_SETFL, flags | os.O_ASYNC)
        theirs.send(MESSAGE)


if __name__ == "__main__":
    main()

"""The local socket of a running node: how it listens, and how its owner asks.

A program that connects says in one line of JSON what it wants, {"do": "status"}, and gets one JSON
object and the end of the stream; {"error": …} if it cannot be done. Only the operator's own user
can connect. What is answered is in `capanode.status` and `capanode.owner_commands`.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capanode.errors import NotRunningError, OwnerCommandError, SocketError

ANSWER_WITHIN_S = 5.0
CONNECTIONS_MAX = 8
# Dozens of models and failures; a file of megabytes is not a node's status.
_ANSWER_BYTES_MAX = 4 * 1024 * 1024
# What the kernel takes for the path of a socket.
_PATH_BYTES_MAX = 100


def listen_at(path: Path) -> socket.socket:
    """A socket at `path` that only this user can connect to. Raises SocketError."""
    server = socket.socket(socket.AF_UNIX)
    # No other user may connect, not even in the moment before a chmod.
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        with _short_path(path) as address:
            server.bind(address)
        server.listen(CONNECTIONS_MAX)
    except OSError as error:
        server.close()
        raise SocketError(f"cannot listen at {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    return server


def ask_status(path: Path) -> dict[str, Any]:
    """The status of the node that listens at `path`, as JSON has it. Raises NotRunningError."""
    return ask_node(path, "status")


def ask_node(path: Path, command: str, **arguments: object) -> dict[str, Any]:
    """What the node at `path` answers. Raises NotRunningError, or OwnerCommandError."""
    data = b""
    asked = json.dumps({"do": command, **arguments}).encode() + b"\n"
    try:
        with _short_path(path) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_WITHIN_S)
            connection.connect(address)
            connection.sendall(asked)
            while piece := connection.recv(64 * 1024):
                data += piece
                if len(data) > _ANSWER_BYTES_MAX:
                    raise NotRunningError(f"what answers at {path} is no node")
        answer: dict[str, Any] = json.loads(data)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise NotRunningError(
            f"no node answers at {path} ({why}): start it with `capanode start`, or name its "
            "--data-dir"
        ) from None
    if "error" in answer:
        raise OwnerCommandError(str(answer["error"]))
    return answer


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """The path as the kernel takes it: sockets in deep folders are reached through a descriptor."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

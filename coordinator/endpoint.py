"""How to reach the coordinator that runs on this machine: a small file in its data directory.

Written when it can serve and removed when it stops; commands and local tools find it there.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`addresses` are full multiaddrs, `http` is the gateway's base URL. `dial_private` is the
    coordinator's setting: what reaches its nodes reaches them from its own machine."""

    peer_id: str
    addresses: tuple[str, ...]
    http: str
    dial_private: tuple[str, ...] = ()


def write_endpoint(path: Path, endpoint: Endpoint) -> None:
    """Whole or not at all: a reader never sees half a file."""
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(asdict(endpoint)))
    scratch.replace(path)


def read_endpoint(path: Path) -> Endpoint | None:
    """None if no coordinator has written one, or the file is none of ours."""
    try:
        plain = json.loads(path.read_text())
        return Endpoint(
            plain["peer_id"],
            tuple(plain["addresses"]),
            plain["http"],
            tuple(plain.get("dial_private", ())),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None

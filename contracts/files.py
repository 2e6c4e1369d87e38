"""Files that people hand to the command line: a secp256k1 key, and a leaf with its proof."""

import json
import os
import stat
from pathlib import Path

from contracts.errors import BadConfigurationError
from contracts.merkle_sum import DEPTH_MAX, Leaf, Node
from contracts.units import parse_address
from contracts.vouchers import EvmKey

_SECRET_BYTES = 32
# A leaf with the deepest proof is under 4 KiB; anything much larger is something else.
_LEAF_FILE_BYTES_MAX = 16_384


def create_evm_key(path: Path) -> EvmKey:
    """Make a key and write it as hex with mode 0600. Raises BadConfigurationError if it exists."""
    secret = os.urandom(_SECRET_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise BadConfigurationError(f"{path} exists already: a key is never overwritten") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return EvmKey(secret)


def load_evm_key(path: Path) -> EvmKey:
    """Raises BadConfigurationError if the file is missing, open to others, or not a key."""
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfigurationError(
            f"cannot read the key at {path} ({type(error).__name__}): create one with `new-key`"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise BadConfigurationError(f"{path} can be read by others: run `chmod 600 {path}`")
    try:
        return EvmKey(bytes.fromhex(text.strip().removeprefix("0x")))
    except ValueError:
        raise BadConfigurationError(f"{path} is not a key: 64 hex digits are expected") from None


def format_leaf(leaf: Leaf) -> str:
    """As an operator publishes it; sums are strings, because JSON numbers lose digits elsewhere."""
    return json.dumps(
        {
            "payee": leaf.payee,
            "cumulative": str(leaf.cumulative),
            "index": leaf.index,
            "proof": [{"hash": node.hash.hex(), "sum": str(node.sum)} for node in leaf.proof],
        },
        indent=1,
    )


def load_leaf(path: Path) -> Leaf:
    """Raises BadConfigurationError on anything else than `format_leaf` writes."""
    try:
        if path.stat().st_size > _LEAF_FILE_BYTES_MAX:
            raise ValueError("too large")
        fields = json.loads(path.read_text())
        nodes = [Node(bytes.fromhex(n["hash"]), int(n["sum"])) for n in fields["proof"]]
        if len(nodes) > DEPTH_MAX or any(len(node.hash) != 32 for node in nodes):
            raise ValueError("not a proof")
        payee = parse_address(fields["payee"])
        return Leaf(payee, int(fields["cumulative"]), int(fields["index"]), tuple(nodes))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfigurationError(f"{path} is not a leaf with its proof: {error}") from error

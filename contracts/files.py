"""Files that people hand to the command line: a secp256k1 key, and a leaf with its proof."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from contracts.errors import BadConfigurationError
from contracts.merkle_sum import DEPTH_MAX, SUM_MAX, Leaf, SumNode
from contracts.units import parse_address
from contracts.vouchers import SECRET_BYTES, EvmKey

# A leaf with the deepest proof is under 4 KiB; anything much larger is something else.
_LEAF_FILE_BYTES_MAX = 16_384
_HASH_BYTES = 32


def create_evm_key(path: Path) -> EvmKey:
    """Make a key and write it as hex with mode 0600. Raises BadConfigurationError if it exists."""
    secret = os.urandom(SECRET_BYTES)
    if path.exists():
        raise BadConfigurationError(f"{path} exists already: a key is never overwritten")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BadConfigurationError(f"cannot write a key to {path}: {error.strerror}") from error
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
        nodes = [_parse_node(node) for node in fields["proof"]]
        if len(nodes) > DEPTH_MAX or not isinstance(fields["index"], int):
            raise ValueError("not a proof")
        if not 0 <= fields["index"] < 1 << len(nodes):
            raise ValueError("the index does not fit the proof")
        payee = parse_address(fields["payee"])
        return Leaf(payee, _parse_sum(fields["cumulative"]), int(fields["index"]), tuple(nodes))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadConfigurationError(f"{path} is not a leaf with its proof: {error}") from error


def _parse_node(fields: Mapping[str, str]) -> SumNode:
    digest = bytes.fromhex(fields["hash"])
    if len(digest) != _HASH_BYTES:
        raise ValueError("not a proof")
    return SumNode(digest, _parse_sum(fields["sum"]))


def _parse_sum(text: str) -> int:
    """Digits only: a JSON number could have been rounded on its way, or have a fraction."""
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal():
        raise ValueError(f"{text!r} is not a string of digits")
    if int(text) > SUM_MAX:
        raise ValueError("an amount of more than 128 bits")
    return int(text)

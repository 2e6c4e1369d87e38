"""A digest beside a row: proof that the medium still holds what was written.

SQLite keeps no checksum of its pages. A digest covers the columns of a row that never change; what
does change (states, balances) is compared by an audit with what it follows from.
"""

import hashlib
from typing import Any

import msgpack


def row_digest(table: str, *values: Any) -> bytes:
    """Of values in the order of the table's digested columns: text, integers, bytes and None."""
    return hashlib.sha256(bytes(msgpack.packb((table, *values)))).digest()

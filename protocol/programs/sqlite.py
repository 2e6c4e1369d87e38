"""How every program of ours opens SQLite, for any driver that hands out `sqlite3` connections.

WAL lets readers go on while the one writer writes. synchronous=FULL makes every commit durable at
power loss; NORMAL would only make batches of one to ten faster (docs/ledger.md). A transaction that
writes begins IMMEDIATE: it takes the write lock at once, and never fails halfway because another
process got in between its first read and its first write.
"""

import sqlite3

# Longer than any transaction of ours, even on a disk that stalls; shorter than a client's patience.
BUSY_TIMEOUT_S = 5

BEGIN_WRITE = "BEGIN IMMEDIATE"
BEGIN_READ = "BEGIN"


def configure_connection(connection: sqlite3.Connection, *, read_only: bool = False) -> None:
    """Set the pragmas of a new connection. The caller begins its transactions itself."""
    # The module's own transactions would begin late, and not IMMEDIATE.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")

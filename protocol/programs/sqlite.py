"""How every program of ours opens SQLite, for any driver that hands out `sqlite3` connections.

WAL lets readers go on while the one writer writes. synchronous=FULL makes every commit durable at
power loss; NORMAL would only make batches of one to ten faster (docs/ledger.md). A transaction that
writes begins IMMEDIATE: it takes the write lock at once, and never fails halfway because another
process got in between its first read and its first write.
"""

import os
import sqlite3
import stat
from pathlib import Path

# Who buys what from whom is for the program's own user.
_MODE = 0o600

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


def keep_database_private(path: Path) -> None:
    """Make the database file with mode 0600 if it is missing, and take what others may do with it
    away if it is not. SQLite gives the files beside it the mode of the database itself.

    Raises OSError with a message for the operator if that cannot be done.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        return
    except FileExistsError:
        pass
    except OSError as error:
        raise OSError(f"cannot make {path.name}: {error.strerror}") from error
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        try:
            found = stat.S_IMODE(path.with_name(name).stat().st_mode)
            if found & ~_MODE:
                path.with_name(name).chmod(_MODE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OSError(
                f"cannot keep {name} from other users ({error.strerror}): let its owner run "
                f"`chmod 600`, or run as its owner"
            ) from error

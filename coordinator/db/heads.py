"""Signed heads of the hash chain, and the look at a database before it is trusted."""

from collections.abc import Iterator

from sqlalchemy import Connection, desc, insert, select

from coordinator.db.schema import ledger_heads, transfers
from coordinator.db.transfers import iterate_transfers
from coordinator.errors import DamagedBooksError
from coordinator.ledger.hash_chain import GENESIS, LedgerHead, next_hash, sign_head
from protocol.ids import PeerId
from protocol.keys import SigningKey

_FIELDS = tuple(LedgerHead.__slots__)
_COLUMNS = [ledger_heads.c[field] for field in _FIELDS]
_NEWEST_HEADS = select(*_COLUMNS).order_by(desc(ledger_heads.c.sequence)).limit(2)

_ADVICE = (
    "stop all programs that use it, keep a copy of the file, run `coordinator ledger audit` to see "
    "what else is wrong, and restore the newest backup that it finds green"
)


def store_head(conn: Connection, key: SigningKey, *, now_ms: int, every: int = 1) -> bool:
    """Sign the newest transfer's hash, if `every` transfers have come since the last head.

    Returns whether there was anything to sign.
    """
    newest = conn.execute(
        select(transfers.c.sequence, transfers.c.chain_hash)
        .order_by(desc(transfers.c.sequence))
        .limit(1)
    ).first()
    last = find_last_head(conn)
    signed_up_to = last.sequence if last is not None else 0
    if newest is None or newest[0] < signed_up_to + every:
        return False
    head = sign_head(key, sequence=newest[0], chain_hash=newest[1], signed_at_ms=now_ms)
    values = {field: getattr(head, field) for field in _FIELDS}
    conn.execute(insert(ledger_heads).values(values))
    return True


def find_last_head(conn: Connection) -> LedgerHead | None:
    row = conn.execute(_NEWEST_HEADS).first()
    return None if row is None else LedgerHead(*row)


def iterate_heads(conn: Connection) -> Iterator[LedgerHead]:
    """In order of sequences."""
    for row in conn.execute(select(*_COLUMNS).order_by(ledger_heads.c.sequence)):
        yield LedgerHead(*row)


def check_books(conn: Connection, *, signer: PeerId | None = None) -> None:
    """The structure of the database, the last two signed heads, and the transfers since the first.

    Raises DamagedBooksError. Costs one pass over the file's pages and some two thousand transfers;
    an audit checks the rest.
    """
    for damage in structural_damage(conn, thorough=False):
        raise _damaged(damage)
    try:
        _check_heads(conn, signer)
    except (LookupError, ValueError, TypeError) as error:
        # A word or a number that no transfer of ours has ever held.
        raise _damaged(f"a value means nothing ({error})") from error


def _check_heads(conn: Connection, signer: PeerId | None) -> None:
    heads = [LedgerHead(*row) for row in conn.execute(_NEWEST_HEADS)]
    if not heads:
        return
    for head in heads:
        if not head.is_signed or signer not in (None, head.signer):
            raise _damaged(f"the head of transfer {head.sequence} is not signed by us")
    signed = {head.sequence: head.chain_hash for head in heads}
    # From the head before the last, or from the beginning if there is none.
    sequence = heads[1].sequence if len(heads) == 2 else 0
    chain_hash = signed.get(sequence, GENESIS)
    for recorded in iterate_transfers(conn, after=sequence):
        sequence += 1
        chain_hash = next_hash(
            chain_hash, recorded.sequence, recorded.created_at_ns, recorded.transfer
        )
        if recorded.sequence != sequence or chain_hash != recorded.chain_hash:
            raise _damaged(f"transfer {sequence} is missing, or not as it was recorded")
        if signed.get(sequence, chain_hash) != chain_hash:
            raise _damaged(f"transfer {sequence} is not the one that was signed")
    if sequence < heads[0].sequence:
        raise _damaged(f"transfer {heads[0].sequence} was signed, and is missing")


def structural_damage(conn: Connection, *, thorough: bool) -> Iterator[str]:
    """What SQLite itself finds wrong with its file; `thorough` also compares indexes with rows."""
    if conn.dialect.name != "sqlite":
        return
    check = "integrity_check" if thorough else "quick_check"
    for (message,) in conn.exec_driver_sql(f"PRAGMA {check}(10)"):
        if message != "ok":
            yield message


def _damaged(what: str) -> DamagedBooksError:
    return DamagedBooksError(f"the books are damaged: {what}; {_ADVICE}")

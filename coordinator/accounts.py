"""What an operator does with accounts: open them, put money in, find them by the name they gave.

Sync functions of a connection: one command is one transaction, beside a running coordinator.
"""

from coordinator.db.accounts import find_account, list_accounts, open_account
from coordinator.db.custodial_keys import store_custodial_key
from coordinator.db.engine import Connection
from coordinator.db.writer import post_one
from coordinator.errors import CoordinatorError
from coordinator.ledger.accounts import Account, AccountId, AccountKind, account_of
from coordinator.ledger.postings import credit
from coordinator.vault import Vault
from protocol.clock import Clock, Entropy
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import ULID_ENTROPY_BYTES, TransferId, new_ulid, parse_peer_id, parse_ulid
from protocol.keys import SigningKey
from protocol.limits import NAME_CHARS_MAX
from protocol.text import printable

# A market with more accounts than this finds them by id.
_NAMES_MAX = 100_000


class AccountError(CoordinatorError):
    """An account cannot be made or found; the message says which."""

    code = Code.UNKNOWN_ACCOUNT


def create_account(
    conn: Connection,
    name: str,
    *,
    peer_id: str | None,
    vault: Vault,
    clock: Clock,
    entropy: Entropy,
) -> Account:
    """Open an account called `name`. Without a peer id we make a key and keep it for its owner.

    Raises AccountError if the name is taken or no name, RemoteProtocolError for a bad peer id.
    """
    check_name(name)
    # A name that is also an id would lead commands to the wrong one of two accounts.
    if _is_peer_id(name) or find_account(conn, AccountId(name)) is not None:
        raise AccountError(f"{name!r} is an id: choose a name that no account can have as its id")
    if any(account.label == name for account in list_accounts(conn, limit=_NAMES_MAX)):
        raise AccountError(f"there is an account called {name!r} already")
    now_ms = clock.now_ms()
    custodial = SigningKey.generate(entropy) if peer_id is None else None
    owner = custodial.peer_id if custodial is not None else parse_peer_id(peer_id or "")
    if find_account(conn, account_of(owner)) is not None:
        raise AccountError(f"{owner} has an account already")
    account = open_account(
        conn,
        Account(account_of(owner), AccountKind.CLIENT, label=name, created_at_ms=now_ms),
    )
    if custodial is not None:
        store_custodial_key(conn, account.id, vault.seal(custodial, entropy), now_ms=now_ms)
    return account


def check_name(name: str) -> None:
    """Raises AccountError for what would spoil a table."""
    if not 0 < len(name) <= NAME_CHARS_MAX or name != name.strip() or not name.isprintable():
        raise AccountError(
            f"{printable(name, chars_max=NAME_CHARS_MAX)!r} is not a name: it needs one to "
            f"{NAME_CHARS_MAX} printable characters, without spaces at its ends"
        )


def credit_account(
    conn: Connection,
    account_id: AccountId,
    amount_nano: int,
    *,
    transfer_id: str | None,
    clock: Clock,
    entropy: Entropy,
) -> Account:
    """Put money in, once per `transfer_id`, and return the account as it is then."""
    now_ms = clock.now_ms()
    ulid = parse_ulid(transfer_id) if transfer_id else new_ulid(now_ms, entropy(ULID_ENTROPY_BYTES))
    post_one(conn, credit(TransferId(ulid), account_id, amount_nano), now_ms=now_ms)
    account = find_account(conn, account_id)
    assert account is not None, "a posting to an account that is missing is refused"
    return account


def find_by_name(conn: Connection, name: str) -> Account:
    """The account with this id or name. Raises AccountError."""
    found = find_account(conn, AccountId(name))
    if found is not None:
        return found
    named = [account for account in list_accounts(conn, limit=_NAMES_MAX) if account.label == name]
    if not named:
        raise AccountError(f"there is no account {name!r}: `coordinator accounts show` lists them")
    return named[0]


def _is_peer_id(text: str) -> bool:
    try:
        parse_peer_id(text)
    except RemoteProtocolError:
        return False
    return True

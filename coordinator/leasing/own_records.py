"""What an account may see of itself: its balance, its jobs, their evidence, and its usage.

Every question names the account that asks. Over the network the connection proves it, at the
gateway an API key.
"""

from coordinator.db.accounts import find_account
from coordinator.db.api_keys import find_key_use
from coordinator.db.engine import Database
from coordinator.db.own_jobs import find_own_evidence, find_own_job, list_own_jobs, sum_usage
from coordinator.ledger.accounts import account_of
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import KeyUse
from protocol.ids import PeerId
from protocol.services import (
    BalanceAsk,
    BalanceReply,
    EvidenceAsk,
    EvidenceReply,
    JobAsk,
    JobReply,
    JobsAsk,
    JobsReply,
    UsageAsk,
    UsageReply,
)


class OwnRecords:
    """Reads the books. Methods raise RemoteProtocolError, and StorageError and its kin."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balance(self, client: PeerId, ask: BalanceAsk) -> BalanceReply:
        account = await self._database.read(find_account, account_of(client))
        if account is None:
            raise RemoteProtocolError(
                f"there is no account {client}: ask the operator of this market for one",
                code=Code.UNKNOWN_ACCOUNT,
            )
        return BalanceReply(
            account.available_nano,
            account.held_nano,
            credited_nano=account.credits_posted,
            spent_nano=account.debits_posted,
        )

    async def jobs(self, client: PeerId, ask: JobsAsk) -> JobsReply:
        return await self._database.read(list_own_jobs, client, before=ask.before, limit=ask.limit)

    async def job(self, client: PeerId, ask: JobAsk) -> JobReply:
        found = await self._database.read(find_own_job, client, ask.job_id)
        if found is None:
            raise _not_found(f"a job {ask.job_id}")
        return found

    async def evidence(self, client: PeerId, ask: EvidenceAsk) -> EvidenceReply:
        found = await self._database.read(find_own_evidence, client, ask.job_id, ask.lease_id)
        if found is None:
            raise _not_found(f"a receipt of a job {ask.job_id}")
        return found

    async def usage(self, client: PeerId, ask: UsageAsk) -> UsageReply:
        return await self._database.read(sum_usage, client, last_day=ask.last_day, days=ask.days)

    async def key_use(self, key_id: str) -> KeyUse:
        found = await self._database.read(find_key_use, key_id)
        if found is None:
            raise _not_found("this API key")
        return found


def _not_found(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"this account has not got {what}", code=Code.NOT_FOUND)

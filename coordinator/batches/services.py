"""What the runs of all batches share."""

from dataclasses import dataclass
from typing import Protocol

from coordinator.batches.files import FileDesk
from coordinator.batches.turns_by_account import AccountPlaces
from coordinator.db.engine import Database
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.market import GatewayMarket
from protocol.clock import Clock
from protocol.programs.runners import Runner


class CallerFinder(Protocol):
    async def caller_of(self, api_key_id: str) -> Caller | None:
        """Who an API key stands for; None if it is unknown or was revoked."""
        ...


@dataclass(frozen=True, slots=True)
class BatchServices:
    """What the runs of all batches share."""

    files: FileDesk
    database: Database
    market: GatewayMarket
    callers: CallerFinder
    places: AccountPlaces
    runner: Runner
    clock: Clock

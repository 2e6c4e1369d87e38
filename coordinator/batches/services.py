"""What the runs of all batches share."""

from dataclasses import dataclass

from coordinator.batches.files import FileService
from coordinator.batches.needs import CallerFinder, FilingRows
from coordinator.batches.turns_by_account import AccountPlaces
from coordinator.gateway.market_side.market import GatewayMarket
from protocol.clock import Clock
from protocol.programs.runners import Runner


@dataclass(frozen=True, slots=True)
class BatchServices:
    """All but the batch itself."""

    files: FileService
    rows: FilingRows
    market: GatewayMarket
    callers: CallerFinder
    places: AccountPlaces
    runner: Runner
    clock: Clock

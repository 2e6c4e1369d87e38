"""What all routes share; made once by `coordinator.gateway.server`."""

from dataclasses import dataclass

from coordinator.gateway.bridge import Bridge
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.gateway.metrics import Metrics
from protocol.programs.runtime import Runtime


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """`market` is touched in trio only, through `bridge`."""

    bridge: Bridge
    market: GatewayMarket
    metrics: Metrics
    config: GatewayConfig
    runtime: Runtime

    def monotonic(self) -> float:
        """Seconds, for durations."""
        return self.runtime.stopwatch_ns() / 1e9

    def now_s(self) -> int:
        """Seconds since 1970, for stamps that users read."""
        return self.runtime.clock.now_ms() // 1_000

    async def read_json(self, request: Request) -> Fields:
        """The request's JSON object. Raises ApiError, ClientGone."""
        config = self.config
        return await request.json(bytes_max=config.body_bytes_max, within_s=config.body_within_s)

    async def read_body(self, request: Request) -> bytes:
        """The request's body. Raises ApiError, ClientGone."""
        config = self.config
        return await request.body(bytes_max=config.body_bytes_max, within_s=config.body_within_s)

"""What all routes share; made once by `coordinator.gateway.server`."""

import asyncio
from dataclasses import dataclass, field

from coordinator.buyer.job_name import JobName
from coordinator.gateway.bridge import Bridge
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.callers import Callers
from coordinator.gateway.http.fair_places import FairPlaces
from coordinator.gateway.http.kept.keeper import Keeper
from coordinator.gateway.http.model_use import ModelUses
from coordinator.gateway.http.rate_limit import RateLimits
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.http.timings import Timings
from coordinator.gateway.market_side.filing import Filing
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.gateway.market_side.running import JobLimits
from coordinator.gateway.metrics import Metrics
from protocol.ids import ULID_ENTROPY_BYTES, JobId, new_ulid
from protocol.payload import Chunk
from protocol.programs.runtime import Runtime

# The parsed form of a large body takes several times its bytes for as long as it is read.
_PARSED_AT_ONCE = 1


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """`market` and `filing` are touched in trio only, through `bridge`; a gateway without `filing`
    keeps no files and runs no batches."""

    bridge: Bridge
    market: GatewayMarket
    metrics: Metrics
    config: GatewayConfig
    runtime: Runtime
    callers: Callers
    limits: RateLimits
    places: FairPlaces
    keeper: Keeper
    timings: Timings
    filing: Filing | None = None
    uses: ModelUses = field(default_factory=ModelUses)
    parsing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARSED_AT_ONCE))

    @classmethod
    def make(
        cls,
        bridge: Bridge,
        market: GatewayMarket,
        metrics: Metrics,
        *,
        config: GatewayConfig,
        runtime: Runtime,
        filing: Filing | None = None,
    ) -> "GatewayContext":
        def monotonic() -> float:
            return runtime.stopwatch_ns() / 1e9

        callers = Callers(
            lambda secret: bridge.call(market.authenticate, secret),
            monotonic=monotonic,
            needs_key=config.needs_key,
        )
        keeper = Keeper(bridge, market.shelf, config)
        places = FairPlaces(places_max=config.requests_max, bytes_max=config.bodies_bytes_max)
        return cls(
            bridge,
            market,
            metrics,
            config,
            runtime,
            callers,
            RateLimits(monotonic),
            places,
            keeper,
            Timings(),
            filing,
        )

    def job_limits(self, name: JobName, delivered: dict[int, list[Chunk]]) -> JobLimits:
        config = self.config
        return JobLimits(config.job_within_s, config.model_within_s, name, delivered)

    def new_job_name(self) -> JobName:
        runtime = self.runtime
        job_id = new_ulid(runtime.clock.now_ms(), runtime.entropy(ULID_ENTROPY_BYTES))
        return JobName(JobId(job_id))

    def monotonic(self) -> float:
        """Seconds, for durations."""
        return self.runtime.stopwatch_ns() / 1e9

    def now_s(self) -> int:
        """Seconds since 1970, for stamps that users read."""
        return self.runtime.clock.now_ms() // 1_000

    async def read_json(self, request: Request) -> Fields:
        """The request's JSON object. Raises ApiError, ClientGone."""
        config = self.config
        return await request.json(
            bytes_max=config.body_bytes_max, within_s=config.body_within_s, parsing=self.parsing
        )

    async def read_body(self, request: Request) -> bytearray:
        """The request's body. Raises ApiError, ClientGone."""
        config = self.config
        return await request.body(bytes_max=config.body_bytes_max, within_s=config.body_within_s)

    async def identify(self, request: Request) -> None:
        """Set the request's caller, as it is now. Raises ApiError (401)."""
        authorization, key = request.header(b"authorization"), request.header(b"x-api-key")
        if authorization is None and key is not None:
            # Where clients of Anthropic's API have it.
            authorization = f"Bearer {key}"
        request.caller = await self.callers.identify(authorization)

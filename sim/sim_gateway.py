"""The gateway of a simulated coordinator: the half of it that runs in trio.

HTTP, and asyncio with it, is left out: a user's request comes in as a call, and its chunks go out
through a channel. What a request does in between is the gateway's own: the key is looked up before
the body is read, the order becomes a job, and the coordinator's own client buys it. Requests end
with the process that they came to.
"""

from dataclasses import dataclass

import trio

from coordinator.app import Coordinator
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.result import PurchaseResult
from coordinator.errors import CoordinatorError
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.rate_limit import RateLimits
from coordinator.gateway.market_side.waiting import wait_model
from coordinator.gateway.orders import Order
from coordinator.in_process.api_keys import ApiKeyService
from coordinator.in_process.market import LocalMarket
from coordinator.vault import Vault
from protocol.errors import Code
from protocol.payload import Chunk
from sim.host import Process


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What a user sends. Its body arrives `body_s` after its headers."""

    secret: str
    order: Order
    deadline_s: float
    body_s: float = 0.0


# In this order: the purchase once it has output, its chunks, and how it ended.
Event = Purchase | Chunk | PurchaseResult | JobFailed


class ApiCall:
    """A request under way. `events` ends without a result or a failure if the process died."""

    def __init__(self, request: ApiRequest) -> None:
        self.request = request
        self.scope = trio.CancelScope()
        chunks_max = GatewayConfig().stream_chunks_max
        self.sender, self.events = trio.open_memory_channel[Event](chunks_max)

    def leave(self) -> None:
        """The user has hung up."""
        self.scope.cancel()


class SimGateway:
    """Serves requests in one process of a coordinator, in its `nursery`."""

    def __init__(self, program: Coordinator, process: Process, nursery: trio.Nursery) -> None:
        keys = ApiKeyService(program.database, Vault(program.key))
        self._market = LocalMarket(program, keys)
        self._limits = RateLimits(trio.current_time)
        self._model_within_s = GatewayConfig().model_within_s
        self._process = process
        self._nursery = nursery

    def ask(self, request: ApiRequest) -> ApiCall:
        call = ApiCall(request)
        self._nursery.start_soon(self._serve, call)
        return call

    async def _serve(self, call: ApiCall) -> None:
        with self._process.voice.speaking(), call.sender, call.scope:
            try:
                await self._run(call)
            except JobFailed as failure:
                await call.sender.send(failure)
            except ApiError as error:
                problem = error.problem
                await call.sender.send(JobFailed(problem.message, code=Code(problem.code)))
            except CoordinatorError as error:
                await call.sender.send(JobFailed(str(error), code=error.code))

    async def _run(self, call: ApiCall) -> None:
        """As `coordinator.gateway.http` and `coordinator.gateway.market_side.running`."""
        request, send = call.request, call.sender.send
        caller = await self._market.authenticate(request.secret)
        if caller is None:
            raise JobFailed("this API key is unknown or revoked", code=Code.UNKNOWN_API_KEY)
        if caller.requests_per_minute is not None:
            self._limits.take(caller.key_id, caller.requests_per_minute)
        await trio.sleep(request.body_s)
        name = request.order.routing.model
        model = await wait_model(self._market, name, within_s=self._model_within_s)
        spec = request.order.to_spec(caller, model, deadline_s=request.deadline_s)
        async with self._market.open_job(caller, spec) as job:
            await send(job)
            async for chunk in job:
                await send(chunk)
        _, result = job.ended()
        await send(result)

"""A user of a simulated gateway: an API key, and what became of each request that came with it."""

import math
from collections.abc import Callable

import trio

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.purchase import Purchase
from coordinator.buyer.spec import JobSpec
from coordinator.db.api_keys import revoke_api_key
from coordinator.db.engine import Connection
from coordinator.gateway.orders import GenerationOrder, Order, PlainOrder, Routing
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.payload import Chunk
from sim.buyer import End, JobReport
from sim.options import KeyPlan
from sim.sim_gateway import ApiRequest, Event, SimGateway
from sim.workload import PlannedJob

# A user that has had enough before anything came does not wait for the first output.
_LEAVES_AFTER_S = 0.3


class ApiUser:
    """Asks the gateway of whichever process of the coordinator is up."""

    def __init__(
        self,
        name: str,
        key_id: str,
        secret: str,
        plan: KeyPlan,
        gateway: Callable[[], SimGateway | None],
    ) -> None:
        self.name = name
        self.key_id = key_id
        self.plan = plan
        # Since when it is revoked: the number of the last transfer before.
        self.revoked_after: int | None = None
        self._secret = secret
        self._gateway = gateway

    @property
    def is_unlimited(self) -> bool:
        return self.plan == KeyPlan(self.plan.account)

    @property
    def honest_codes(self) -> frozenset[Code]:
        """What else may come of its jobs than of those of a client with a key of its own."""
        codes = set()
        if self.plan.budget_nano is not None:
            codes.add(Code.BUDGET_EXCEEDED)
        if self.plan.requests_per_minute is not None:
            codes.add(Code.RATE_LIMITED)
        if self.revoked_after is not None:
            codes.add(Code.UNKNOWN_API_KEY)
        return frozenset(codes)

    def revoke(self, conn: Connection, *, now_ms: int) -> None:
        """As an operator does it, beside the coordinator."""
        revoke_api_key(conn, self.key_id, now_ms=now_ms)
        last = conn.exec_driver_sql("SELECT coalesce(max(sequence), 0) FROM transfers")
        self.revoked_after = last.scalar_one()

    async def buy(self, planned: PlannedJob) -> JobReport:
        """Ask once, and take what comes."""
        report = JobReport(planned)
        started_at = trio.current_time()
        gateway = self._gateway()
        if gateway is None:
            report.code, report.message = Code.COORDINATOR_LOST, "the connection is refused"
        else:
            await self._consume(gateway, report, started_at)
        report.total_ms = 1000 * (trio.current_time() - started_at)
        return report

    async def _consume(self, gateway: SimGateway, report: JobReport, started_at: float) -> None:
        planned, spec = report.planned, report.planned.spec
        enough = planned.cancel_after
        call = gateway.ask(ApiRequest(self._secret, _order(spec), spec.deadline_s, planned.body_s))
        purchase: Purchase | None = None
        report.code, report.message = Code.COORDINATOR_LOST, "the connection is lost"
        is_enough = False
        with trio.move_on_after(_LEAVES_AFTER_S if enough == 0 else math.inf) as patience:
            async for event in call.events:
                if isinstance(event, Purchase):
                    purchase = event
                    report.first_output_ms = 1000 * (trio.current_time() - started_at)
                is_enough = report.chunks == enough and isinstance(event, Chunk)
                if is_enough or not _take(event, report):
                    break
        if purchase is not None:
            report.take_terms(purchase)
        if patience.cancelled_caught or is_enough:
            report.code, report.end = None, End.CANCELLED
        elif report.code is not None and report.chunks:
            report.end = End.CUT
        call.leave()


def _take(event: Event, report: JobReport) -> bool:
    """Returns whether more may come."""
    if isinstance(event, Purchase):
        report.take_terms(event)
    elif isinstance(event, Chunk):
        report.take(event)
    elif isinstance(event, JobFailed):
        report.code, report.message, report.job_id = event.code, str(event), event.job_id
        return False
    else:
        report.code, report.end, report.outcome = None, End.ANSWERED, event
        return False
    return True


def _order(spec: JobSpec) -> Order:
    """What a request over HTTP says of a job."""
    routing = Routing(spec.model, spec.objective, spec.constraints)
    job_input = spec.job_input
    if isinstance(job_input, GenerationInput):
        return GenerationOrder(routing, job_input, len((job_input.prompt or "").encode()))
    return PlainOrder(spec.task, "input", routing, job_input, 0)

"""What bad machines cost the users of three honest nodes, in virtual time.

932 requests in four minutes, from twenty accounts, through the coordinator's own client. Beside the
honest nodes stands one machine with a vice, as one node and as fifty, at half price and with a
thousand slots on offer. A request is late if its answer takes `LATE_S` or more, and lost if it gets
none. A plain run without the bad machine stands beside it, and is subtracted.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import trio

from capanode.settings import CoordinatorAddress
from coordinator.app import Coordinator, MarketRules
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.spec import JobSpec
from coordinator.db.accounts import open_account
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import Account, AccountKind, account_of
from coordinator.ledger.postings import credit
from coordinator.market.breaker import BreakerState
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.ids import ULID_ENTROPY_BYTES, TransferId, new_ulid
from protocol.keys import SigningKey
from protocol.messages import Task
from protocol.money import NANO_PER_CREDIT
from protocol.net.clock import VirtualClock
from protocol.net.memory import MemoryNetwork
from protocol.pricing import Units
from protocol.programs.runtime import Runtime, child_rng
from sim.auditor import Auditor
from sim.bad_node import BadNode, tempting
from sim.determinism import run_deterministically
from sim.machine_clock import MachineClock
from sim.options import MACHINES
from sim.sim_coordinator import SimCoordinator, address_of
from sim.sim_node import SimNode
from sim.sim_worker import Ailments, answer_of
from sim.trace import Trace
from sim.vices import Vice
from sim.workload import MODELS

REQUESTS = 932
LASTS_S = 240.0
LATE_S = 4.0
IDENTITIES = (1, 50)
_ACCOUNTS = 20
_HONEST = 3
_TOKENS = 24
_DEADLINE_S = 30.0
_SEED = 11
# In memory, 256 ports are one machine, as an address block is on the net.
_PORTS_PER_MACHINE = 256
_FIRST_PORT = 65_536


@dataclass(slots=True)
class Toll:
    """What became of the requests of one run."""

    answered: int = 0
    late: int = 0
    lost: int = 0
    wrong: int = 0
    refused_while_idle: int = 0
    false_ejections: int = 0
    codes: dict[Code, int] = field(default_factory=dict)


def run(requests: int = REQUESTS) -> dict[str, float]:
    """Figures by vice and number of identities; `_hurt` is lost and late beyond the plain run."""
    plain = toll_of(None, 0, requests=requests)
    figures: dict[str, float] = {"plain_lost": plain.lost, "plain_late": plain.late}
    worst = 0
    for vice in Vice:
        for identities in IDENTITIES:
            toll = toll_of(vice, identities, requests=requests)
            hurt = max(0, toll.lost + toll.late - plain.lost - plain.late)
            worst = max(worst, hurt)
            name = f"{vice.value}_{identities}"
            figures[f"{name}_hurt"] = hurt
            figures[f"{name}_wrong"] = toll.wrong
            figures[f"{name}_false_ejections"] = toll.false_ejections
            figures[f"{name}_refused_while_idle"] = toll.refused_while_idle
    figures["worst_hurt"] = worst
    for kind in ("false_ejections", "refused_while_idle"):
        figures[kind] = sum(v for name, v in figures.items() if name.endswith(f"_{kind}"))
    return figures


def toll_of(vice: Vice | None, identities: int, *, requests: int) -> Toll:
    """One run beside a machine with so many identities."""

    async def main(rng: random.Random) -> Toll:
        trace = Trace(trio.current_time)
        with trace.logs_captured():
            market = _Market(rng)
            return await market.run(vice, identities, requests)

    return run_deterministically(main, _SEED)


class _Market:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._clock = VirtualClock()
        self._clock.now_ms()
        self._network = MemoryNetwork(child_rng(rng))
        key = SigningKey.generate(rng.randbytes)
        self._auditor = Auditor(key.peer_id, fee_bps=500)
        self._coordinator = SimCoordinator(
            key,
            self._network,
            MarketRules(),
            lambda: Runtime(self._clock, child_rng(rng).randbytes, child_rng(rng)),
            rng=child_rng(rng),
            auditor=self._auditor,
        )
        self._accounts = [SigningKey.generate(rng.randbytes) for _ in range(_ACCOUNTS)]
        self._honest: list[SimNode] = []
        self._toll = Toll()

    async def run(self, vice: Vice | None, identities: int, requests: int) -> Toll:
        for key in self._accounts:
            self._credit(key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._coordinator.host.run)
            for number in range(_HONEST):
                node = SimNode(*self._named(f"honest-{number}", 10 + number), **self._parts())
                self._honest.append(node)
                nursery.start_soon(node.host.run)
            await self._wait_attached(_HONEST)
            for number in range(identities):
                assert vice is not None
                bad = BadNode(vice, *self._named(f"bad-{number}", 1, number), **self._parts())
                nursery.start_soon(bad.host.run)
                nursery.start_soon(bad.misbehave)
            await trio.sleep(10.0)
            async with trio.open_nursery() as jobs:
                jobs.start_soon(self._watch_breakers, requests)
                for _ in range(requests):
                    jobs.start_soon(self._ask, self._rng.uniform(0.0, LASTS_S))
            nursery.cancel_scope.cancel()
        self._coordinator.disk.close()
        for node in self._honest:
            node.store.close()
        return self._toll

    # The cast.

    def _named(self, name: str, machine: int, number: int = 0) -> tuple[Any, ...]:
        """The positional arguments of a node; its address says on which machine it is."""
        key = SigningKey.generate(self._rng.randbytes)
        self._network.transport(key, port=_FIRST_PORT + _PORTS_PER_MACHINE * machine + number)
        kind = MACHINES[-1] if name.startswith("honest") else tempting(MACHINES[-1])
        return name, key, kind, self._network, MachineClock(self._clock)

    def _parts(self) -> dict[str, Any]:
        me = self._coordinator.key.peer_id
        return {
            "rng": child_rng(self._rng),
            "tasks": (Task.CAUSAL_LM,),
            "coordinator": CoordinatorAddress(me, address_of(me)),
            "auditor": self._auditor,
            "ailments": Ailments(1.0),
        }

    def _credit(self, key: SigningKey) -> None:
        now_ms = self._clock.now_ms()
        transfer_id = TransferId(new_ulid(now_ms, self._rng.randbytes(ULID_ENTROPY_BYTES)))
        account_id = account_of(key.peer_id)
        account = Account(account_id, AccountKind.CLIENT, label="", created_at_ms=now_ms)
        with self._coordinator.books() as conn:
            open_account(conn, account)
            post_one(conn, credit(transfer_id, account_id, 100 * NANO_PER_CREDIT), now_ms=now_ms)

    @property
    def _market(self) -> Coordinator:
        current = self._coordinator.current
        assert current is not None
        return current

    async def _wait_attached(self, count: int) -> None:
        with trio.fail_after(60):
            while True:
                await trio.sleep(0.25)
                current = self._coordinator.current
                if current is None:
                    continue
                if sum(entry.is_attached for entry in current.market.book) >= count:
                    return

    # The load.

    async def _ask(self, at_s: float) -> None:
        await trio.sleep(at_s)
        key = self._rng.choice(self._accounts)
        prompt = f"request {at_s:.6f}"
        job_input = GenerationInput(prompt=prompt, max_tokens=_TOKENS, seed=1, ignore_eos=True)
        units = Units(8, _TOKENS)
        spec = JobSpec(
            MODELS[Task.CAUSAL_LM], Task.CAUSAL_LM, job_input, units, units, deadline_s=_DEADLINE_S
        )
        right = answer_of(job_input).token_ids
        started_at = trio.current_time()
        got: tuple[int, ...] = ()
        try:
            async with self._market.client.buy(spec, key) as purchase:
                async for chunk in purchase:
                    got += chunk.token_ids
        except JobFailed as failure:
            self._toll.lost += 1
            self._toll.codes[failure.code] = self._toll.codes.get(failure.code, 0) + 1
            is_refusal = failure.code in (Code.NO_NODE_FITS, Code.BUSY, Code.RATE_LIMITED)
            if is_refusal and self._has_idle_seat():
                self._toll.refused_while_idle += 1
            return
        self._toll.answered += 1
        self._toll.wrong += got != right
        self._toll.late += trio.current_time() - started_at >= LATE_S

    def _has_idle_seat(self) -> bool:
        return any(
            model.seats.slots > worker.live_jobs
            for node in self._honest
            for model, worker in zip(node.models, node.workers, strict=True)
        )

    async def _watch_breakers(self, requests: int) -> None:
        """Until the last request has ended: is an honest node ejected?"""
        ejected: set[str] = set()
        while self._toll.answered + self._toll.lost < requests:
            await trio.sleep(1.0)
            now_ms = self._clock.now_ms()
            for node in self._honest:
                standing = self._market.market.reputation.standing(node.key.peer_id, now_ms=now_ms)
                if standing is not None and standing.breaker is not BreakerState.CLOSED:
                    ejected.add(node.name)
        self._toll.false_ejections = len(ejected)

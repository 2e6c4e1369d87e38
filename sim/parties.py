"""Who takes part in a world: made from its options, connected by one network, not yet running."""

import random
from dataclasses import dataclass, replace
from itertools import combinations

from capanode.settings import CoordinatorAddress
from coordinator.accounts import create_account
from coordinator.app import MarketRules
from coordinator.db.accounts import list_accounts, open_account
from coordinator.db.api_keys import create_api_key
from coordinator.db.engine import Connection
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import (
    SYSTEM_ACCOUNTS,
    Account,
    AccountId,
    AccountKind,
    SystemAccount,
    account_of,
)
from coordinator.ledger.postings import credit
from coordinator.vault import Vault
from protocol.ids import ULID_ENTROPY_BYTES, PeerId, TransferId, new_ulid
from protocol.keys import SigningKey
from protocol.messages import Task
from protocol.net.clock import VirtualClock
from protocol.net.memory import MemoryNetwork
from protocol.net.memory_wire import Conditions
from protocol.programs.runtime import Runtime, child_rng
from sim.api_user import ApiUser
from sim.auditor import Auditor, Balances
from sim.bad_client import BadClient
from sim.bad_node import BadNode, tempting
from sim.book_rows import read_gifts
from sim.buyer import Buyer, SimClient
from sim.key_rows import read_keys
from sim.machine_clock import MachineClock
from sim.options import KeyPlan, WorldOptions
from sim.sim_coordinator import COORDINATOR_NAME, SimCoordinator, address_of
from sim.sim_node import SimNode
from sim.sim_worker import Ailments
from sim.trace import Trace
from sim.vices import Habit, Vice


@dataclass(frozen=True, slots=True)
class Parties:
    """The whole cast. `links` are the conditions between each two of them in good weather."""

    network: MemoryNetwork
    clock: VirtualClock
    coordinator: SimCoordinator
    nodes: tuple[SimNode, ...]
    buyers: tuple[Buyer, ...]
    users: tuple[ApiUser, ...]
    bad_nodes: tuple[BadNode, ...]
    bad_clients: tuple[BadClient, ...]
    links: dict[tuple[PeerId, PeerId], Conditions]
    auditor: Auditor
    # The accounts of API keys, by name.
    gateway_accounts: dict[str, AccountId]

    def names(self) -> dict[str, str]:
        """What each account is called."""
        parties: tuple[SimNode | SimClient, ...]
        parties = (*self.nodes, *self.buyers, *self.bad_nodes, *self.bad_clients)
        names = {str(party.key.peer_id): party.name for party in parties}
        return names | {str(account): name for name, account in self.gateway_accounts.items()}

    def buyer_of(self, number: int) -> Buyer | ApiUser:
        """The clients come first, then the API keys."""
        buyers: tuple[Buyer | ApiUser, ...] = (*self.buyers, *self.users)
        return buyers[number]

    def set_links(self, *, of: PeerId | None = None, extra_latency_s: float = 0.0) -> None:
        """Set the distances between all parties, or from one to all others."""
        for (a, b), usual in self.links.items():
            if of in (None, a, b):
                latency_s = usual.latency_s + extra_latency_s
                self.network.set_conditions(a, b, replace(usual, latency_s=latency_s))

    def close(self) -> None:
        """Give back what is not memory: the databases."""
        self.coordinator.disk.close()
        for node in (*self.nodes, *self.bad_nodes):
            node.store.close()


def make_parties(options: WorldOptions, rng: random.Random, trace: Trace) -> Parties:
    """Keys, clocks, machines, accounts and distances, each drawn in this order."""
    casting = _Casting(options, rng)
    coordinator, auditor = casting.make_coordinator()
    me = coordinator.key.peer_id
    nodes = tuple(casting.make_node(number, me, auditor) for number in range(options.nodes))
    buyers = tuple(casting.make_buyer(number, me, auditor) for number in range(options.clients))
    for number, buyer in enumerate(buyers):
        is_poor = number == options.clients - 1
        demand = options.demand
        amount_nano = demand.poor_credit_nano if is_poor else demand.credit_nano
        casting.open_account(coordinator, buyer)
        casting.credit(coordinator, auditor, buyer.key.peer_id, amount_nano)
    accounts = casting.make_gateway_accounts(coordinator, auditor)
    users = tuple(
        casting.make_user(number, plan, accounts, coordinator)
        for number, plan in enumerate(options.api_keys)
    )
    bad_nodes = tuple(
        casting.make_bad_node(number, vice, me, auditor)
        for number, vice in enumerate(options.faults.bad_nodes)
    )
    bad_clients = tuple(
        casting.make_bad_client(number, habit, me, auditor, trace)
        for number, habit in enumerate(options.faults.bad_clients)
    )
    for client in bad_clients:
        casting.open_account(coordinator, client)
        casting.credit(coordinator, auditor, client.key.peer_id, options.demand.credit_nano)
    everyone: tuple[SimNode | SimClient, ...] = (*nodes, *buyers, *bad_nodes, *bad_clients)
    peers = [me, *(party.key.peer_id for party in everyone)]
    links = {pair: options.network.draw(rng) for pair in combinations(peers, 2)}
    parties = Parties(
        casting.network,
        casting.clock,
        coordinator,
        nodes,
        buyers,
        users,
        bad_nodes,
        bad_clients,
        links,
        auditor,
        accounts,
    )
    trace.name(me, COORDINATOR_NAME)
    for peer, name in parties.names().items():
        trace.name(PeerId(peer), name)
    parties.set_links()
    return parties


def read_balances(conn: Connection) -> Balances:
    """What the coordinator's books say, as the plain numbers that the auditor compares."""
    accounts = {account.id: account for account in list_accounts(conn, limit=1_000)}
    system = {account.id: accounts.pop(account.id) for account in SYSTEM_ACCOUNTS}
    return Balances(
        posted_nano={account.id: account.posted_nano for account in accounts.values()},
        held_nano={account.id: account.held_nano for account in accounts.values()},
        operator_nano=system[SystemAccount.OPERATOR].posted_nano,
        escrow_nano=system[SystemAccount.ESCROW].posted_nano,
        goodwill_nano=system[SystemAccount.GOODWILL].posted_nano,
        gifts=read_gifts(conn),
        spent_nano={key.id: key.spent_nano for key in read_keys(conn)},
    )


class _Casting:
    """Makes parties one by one, all from one random source."""

    def __init__(self, options: WorldOptions, rng: random.Random) -> None:
        self.clock = VirtualClock()
        self.clock.now_ms()  # The world begins now.
        self.network = MemoryNetwork(child_rng(rng))
        self._options = options
        self._rng = rng

    def make_coordinator(self) -> tuple[SimCoordinator, Auditor]:
        rng = child_rng(self._rng)
        clock = MachineClock(self.clock)

        def make_runtime() -> Runtime:
            return Runtime(clock, child_rng(rng).randbytes, child_rng(rng))

        key = SigningKey.generate(self._rng.randbytes)
        pools = self._options.pools
        rules = MarketRules(
            fee_bps=self._options.fee_bps, leases_ahead=pools.leases if pools.is_at_gateway else 0
        )
        auditor = Auditor(key.peer_id, fee_bps=self._options.fee_bps)
        coordinator = SimCoordinator(
            key,
            self.network,
            rules,
            make_runtime,
            rng=child_rng(self._rng),
            auditor=auditor,
            clock=clock,
            bounds=self._options.bounds,
        )
        return coordinator, auditor

    def make_node(self, number: int, coordinator: PeerId, auditor: Auditor) -> SimNode:
        has_both = number % 2 == 0
        return SimNode(
            f"node-{number + 1}",
            SigningKey.generate(self._rng.randbytes),
            self._rng.choice(self._options.machines),
            self.network,
            self._skewed_clock(),
            rng=child_rng(self._rng),
            tasks=(Task.CAUSAL_LM, Task.EMBEDDING) if has_both else (Task.CAUSAL_LM,),
            coordinator=CoordinatorAddress(coordinator, address_of(coordinator)),
            auditor=auditor,
            ailments=Ailments(self._options.faults.slowdown),
        )

    def make_buyer(self, number: int, coordinator: PeerId, auditor: Auditor) -> Buyer:
        key = SigningKey.generate(self._rng.randbytes)
        return Buyer(
            f"client-{number + 1}",
            key,
            self.network.transport(key),
            self._skewed_clock(),
            rng=child_rng(self._rng),
            coordinator=coordinator,
            addresses=(address_of(coordinator),),
            auditor=auditor,
            leases_ahead=self._options.leases_ahead_of(number),
        )

    def make_gateway_accounts(
        self, coordinator: SimCoordinator, auditor: Auditor
    ) -> dict[str, AccountId]:
        """Accounts whose signing keys the coordinator keeps."""
        accounts: dict[str, AccountId] = {}
        for number in sorted({plan.account for plan in self._options.api_keys}):
            name = f"gateway-{number + 1}"
            with coordinator.books() as conn:
                account = create_account(
                    conn,
                    name,
                    peer_id=None,
                    vault=Vault(coordinator.key),
                    clock=self.clock,
                    entropy=self._rng.randbytes,
                )
            accounts[name] = account.id
            self.credit(coordinator, auditor, account.id, self._options.demand.credit_nano)
        return accounts

    def make_user(
        self,
        number: int,
        plan: KeyPlan,
        accounts: dict[str, AccountId],
        coordinator: SimCoordinator,
    ) -> ApiUser:
        name = f"user-{number + 1}"
        with coordinator.books() as conn:
            secret, key = create_api_key(
                conn,
                accounts[f"gateway-{plan.account + 1}"],
                name,
                now_ms=self.clock.now_ms(),
                entropy=self._rng.randbytes,
                budget_nano=plan.budget_nano,
                requests_per_minute=plan.requests_per_minute,
            )
        return ApiUser(name, key.id, secret, plan, lambda: coordinator.gateway)

    def make_bad_node(
        self, number: int, vice: Vice, coordinator: PeerId, auditor: Auditor
    ) -> BadNode:
        node = BadNode(
            vice,
            f"bad-node-{number + 1}",
            SigningKey.generate(self._rng.randbytes),
            tempting(self._options.machines[-1]),
            self.network,
            self._skewed_clock(),
            rng=child_rng(self._rng),
            tasks=(Task.CAUSAL_LM,),
            coordinator=CoordinatorAddress(coordinator, address_of(coordinator)),
            auditor=auditor,
            ailments=Ailments(self._options.faults.slowdown),
        )
        node.is_active = False
        node.host.switch_off()
        return node

    def make_bad_client(
        self, number: int, habit: Habit, coordinator: PeerId, auditor: Auditor, trace: Trace
    ) -> BadClient:
        key = SigningKey.generate(self._rng.randbytes)
        return BadClient(
            habit,
            trace,
            f"bad-client-{number + 1}",
            key,
            self.network.transport(key),
            self._skewed_clock(),
            rng=child_rng(self._rng),
            coordinator=coordinator,
            addresses=(address_of(coordinator),),
            auditor=auditor,
        )

    def open_account(self, coordinator: SimCoordinator, buyer: SimClient) -> None:
        account_id, now_ms = account_of(buyer.key.peer_id), self.clock.now_ms()
        account = Account(account_id, AccountKind.CLIENT, label=buyer.name, created_at_ms=now_ms)
        with coordinator.books() as conn:
            open_account(conn, account)

    def credit(
        self, coordinator: SimCoordinator, auditor: Auditor, account: str, amount_nano: int
    ) -> None:
        """As an operator does it who was paid: put money in."""
        now_ms = self.clock.now_ms()
        transfer_id = TransferId(new_ulid(now_ms, self._rng.randbytes(ULID_ENTROPY_BYTES)))
        with coordinator.books() as conn:
            post_one(conn, credit(transfer_id, AccountId(account), amount_nano), now_ms=now_ms)
        auditor.credited(account, amount_nano)

    def _skewed_clock(self) -> MachineClock:
        limit_ms = self._options.faults.skew_ms_max
        return MachineClock(self.clock, ahead_ms=self._rng.randint(-limit_ms, limit_ms))

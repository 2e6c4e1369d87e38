"""How honest people behave among others, and what they must not lose.

`honest` is an operator that serves only what it can redeem, posts only what it promised, and
answers every challenge. `node` works for `crook` and watches its roots. Both look at the chain at
least every `LOOK_EVERY_S`, which is what docs/settlement.md asks of them.
"""

from collections import defaultdict

from tests.contracts.market import TERMS
from tests.contracts.model import Root
from tests.contracts.twin import CLIENTS, OPERATORS, PAYEES, Twin

# Less than the time for an answer, and than the half of a window in which nobody is paid.
LOOK_EVERY_S = 300


class HonestPeople:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._model = twin.model
        # Cumulative: what the honest operator has served to each client, and kept for itself.
        self.served: dict[str, int] = defaultdict(int)
        self.fee = 0

    def wait(self, seconds: int) -> None:
        """Time passes, with a look at the chain every so often, and one at the end."""
        while seconds > 0:
            self.look()
            step = min(seconds, LOOK_EVERY_S)
            self._twin.pass_time(step)
            seconds -= step
        self.look()

    def look(self) -> None:
        self._run_honest_operator()
        self._watch_pending_root()
        self._inherit_from_stale()

    # The operator.

    def serve(self, client: str, amount: int) -> None:
        """Work for a client that signs for it, if it can be redeemed whatever comes next."""
        book, escrow = self._model.operators["honest"], self._model.escrows[client, "honest"]
        open_here = self.served[client] - escrow.redeemed
        fits = open_here + amount <= escrow.balance and not escrow.exit_at
        covered = self.open_charges() + amount <= book.stake // 2
        if fits and covered and not book.unstake_epoch:
            self.served[client] += amount
            self._twin.ceilings[client, "honest"] = self.served[client]

    def open_charges(self) -> int:
        """What was served and not redeemed."""
        escrows = self._model.escrows
        return sum(self.served[client] - escrows[client, "honest"].redeemed for client in CLIENTS)

    def collect(self) -> None:
        self._twin.redeem("honest", [(client, self.served[client]) for client in CLIENTS])

    def leaves(self) -> dict[str, int]:
        """The highest promise to each, and the fee that was posted so far, which never shrinks."""
        leaves = {"honest": self.fee}
        for name in ("node", "mate"):
            promises = self._twin.promised["honest", name]
            leaves[name] = max((amount for _, amount in promises), default=0)
        return leaves

    def promise(self, share: int) -> None:
        """Out of what was redeemed, and never less than before."""
        book = self._model.operators["honest"]
        for payee in ("node", "mate"):
            leaves = self.leaves()
            rest = book.credit - sum(leaves.values())
            amount = leaves[payee] + rest * share // 200
            self._twin.promised["honest", payee].append((book.next_epoch, amount))

    def post_root(self) -> None:
        """Whatever was redeemed and promised to nobody is the fee."""
        leaves = self.leaves()
        leaves["honest"] += self._model.operators["honest"].credit - sum(leaves.values())
        if self._twin.post("honest", leaves):
            self.fee = leaves["honest"]

    def unstake(self) -> None:
        if self.open_charges() == 0:
            self._twin.unstake("honest")

    def _run_honest_operator(self) -> None:
        book = self._model.operators["honest"]
        if book.pending is not None:
            for payee, (holder, _, _) in list(book.pending.slots.items()):
                if holder:
                    self._twin.respond("honest", payee)
            if self._model.now >= book.pending.posted_at + TERMS.window_s:
                self._twin.finalize("honest")
        leaving = any(self._model.escrows[client, "honest"].exit_at for client in CLIENTS)
        if leaving and self.open_charges():
            self.collect()
        due = self._model.now >= book.fresh_at + TERMS.stale_after_s // 2
        if book.pending is None and book.stake and (due or (leaving and self.open_charges())):
            self.post_root()

    # The node.

    def _watch_pending_root(self) -> None:
        """Object to what is missing: the node's promise, and anything that was paid."""
        book = self._model.operators["crook"]
        if book.pending is None:
            return
        for payee, (holder, _, deadline) in list(book.pending.slots.items()):
            if holder and self._model.now >= deadline:
                self._twin.resolve("crook", payee)
                return
        epoch, amount = self.binding(book.pending.epoch)
        self._object(book.pending, "node", epoch, amount)
        for payee in PAYEES:
            self._object(book.pending, payee, 0, book.paid[payee])

    def _object(self, root: Root, payee: str, epoch: int, amount: int) -> None:
        _, asked, _ = root.slots.get(payee, ("", 0, 0))
        if amount > max(provable(root, payee), asked):
            self._twin.challenge("node", "crook", payee, epoch, amount)

    def _inherit_from_stale(self) -> None:
        """The leaf first, then the best promise, then its share."""
        book = self._model.operators["crook"]
        if not book.stale_at:
            return
        if self._model.now >= book.stale_at + TERMS.collection_s:
            self._twin.claim_stale("crook", "node")
            return
        self._twin.claim("crook", "node")
        best = max((amount for _, amount in self._twin.promised["crook", "node"]), default=0)
        if best > book.paid["node"] + book.weights["node"]:
            self._twin.file_promise("crook", "node", best)

    def binding(self, epoch: int) -> tuple[int, int]:
        """The node's best promise of the crook's for this root: its epoch, and how much."""
        held = [(e, a) for e, a in self._twin.promised["crook", "node"] if e <= epoch]
        return max(held, key=lambda promise: promise[1], default=(0, 0))

    # What they must not lose.

    def check(self) -> None:
        book = self._model.operators["honest"]
        # The operator's stake: no root of its own was ever cancelled, and it was never late.
        assert not book.cancelled
        assert not book.stale_at
        assert sum(self.leaves().values()) <= book.credit
        # What it served: a client that is gone has paid for all of it.
        for client in CLIENTS:
            escrow = self._model.escrows[client, "honest"]
            assert self.served[client] - escrow.redeemed <= escrow.balance
        # The node: a final root holds its promises, and every leaf of a final root can be paid.
        active = self._model.operators["crook"].active
        assert provable(active, "node") >= self.binding(active.epoch)[1] or not active.epoch
        for name in OPERATORS:
            book = self._model.operators[name]
            if book.active.is_true():
                due = (max(0, leaf - book.paid[who]) for who, leaf in book.active.leaves.items())
                assert sum(due) <= book.active.total - book.claimed


def provable(root: Root, payee: str) -> int:
    """What a proof can show: nothing at all, if the sum is a lie."""
    return root.leaves.get(payee, 0) if root.is_true() else 0

"""An operator and its friend play at random against a client and a watchful node, in the model.

The model is quick, so that thousands of games take a second or two. The two may do harm, but
whatever they do must not pay.
"""

from dataclasses import asdict
from random import Random

from tests.contracts.market import TERMS
from tests.contracts.model import Model, Operator, Refusal, Root

# Less than half a window and than the time for an answer.
LOOK_EVERY_S = 300
MOON = 2**100


class Game:
    """`ahead` is how far above the newest root the epochs of the node's promises are."""

    def __init__(self, rng: Random, *, ahead: int) -> None:
        self._rng = rng
        self._ahead = ahead
        self._model = Model(1_000, **asdict(TERMS))
        # The node's promises: epoch and cumulative amount.
        self._promises: list[tuple[int, int]] = []
        self._model.stake("crook", rng.choice([100, 200, 600, 1_000]))
        self._model.deposit("client", "crook", 10**6)

    @property
    def book(self) -> Operator:
        return self._model.operators["crook"]

    def play(self) -> int:
        """What the two have gained at the end."""
        moves = [
            self.redeem,
            self.post,
            self.claim,
            self.dispute,
            self.stake,
            self.leave,
            self.wait,
        ]
        for _ in range(self._rng.randint(4, 25)):
            self._rng.choice(moves)()
        if self._rng.random() < 0.8:
            self.stop()
        for name in ("claim_stale", "claim"):
            for who in ("mate", "crook"):
                self._do(name, "crook", who)
        self._do("claim_remainder", "crook")
        for epoch, root in self.book.cancelled.items():
            for payee in root.slots:
                self._do("reclaim_bond", "crook", epoch, payee)
        wallets, owed = self._model.wallets, self._model.owed
        return sum(wallets[who] + owed[who] for who in ("crook", "mate")) + self.book.stake

    # What the two do.

    def redeem(self) -> None:
        """The node works, and has its promise before the money is redeemed."""
        room = self.book.active.total + self.book.stake // 2 - self.book.credit
        if room <= 0 or self.book.unstake_epoch or self.book.stale_at:
            return
        amount = self._rng.choice([room, room, self._rng.randint(1, room)])
        epoch = self.book.next_epoch - 1 + self._ahead
        self._promises.append((epoch, self._promised() + amount))
        charged = self._model.escrows["client", "crook"].redeemed + amount
        self._do("redeem", "crook", [("client", charged, charged)])

    def post(self) -> None:
        """All to the friend, or only what binds to the node, or something else; or a lie."""
        most = min(self.book.credit, self.book.active.total + self.book.stake // 2)
        total = self._rng.choice([most, most, self.book.active.total])
        bound = max(self._promised(self.book.next_epoch), self.book.paid["node"])
        node = self._rng.choice([0, min(total, bound), self._rng.randint(0, max(0, total))])
        rest = self._rng.choice(["mate", "mate", "crook"])
        lie = self._rng.choice([0] * 19 + [1])
        self._do("post_root", "crook", {"node": node, rest: total - node}, total + lie)

    def claim(self) -> None:
        for who in ("mate", "crook"):
            self._do("claim", "crook", who)
            self._do("withdraw", who)

    def dispute(self) -> None:
        payee = self._rng.choice(["node", "mate"])
        amount = self._rng.choice([1, self._promised(), self._promised() + 1, MOON])
        self._do("challenge", "mate", "crook", payee, 0, amount)
        if self._rng.random() < 0.5:
            self._do("respond", "crook", payee)

    def stake(self) -> None:
        self._do("stake", "crook", self._rng.choice([1, 100, 1_000]))

    def leave(self) -> None:
        self._do(self._rng.choice(["request_unstake", "unstake"]), "crook")

    def wait(self) -> None:
        late_s = self.book.fresh_at + TERMS.stale_after_s - self._model.now
        self._pass_time(self._rng.choice([1, 300, 499, 500, 999, 1_000, 1_400, max(1, late_s)]))

    def stop(self) -> None:
        """No more roots, and a promise of everything to the friend."""
        for _ in range(3):
            late_s = self.book.fresh_at + TERMS.stale_after_s - self._model.now
            self._pass_time(max(late_s, TERMS.window_s + TERMS.response_s))
        self._do("file_promise", "crook", "mate", MOON)
        self._pass_time(TERMS.collection_s)

    # What the node does.

    def _pass_time(self, seconds: int) -> None:
        while seconds > 0:
            self._look()
            step = min(seconds, LOOK_EVERY_S)
            self._model.now += step
            seconds -= step
        self._look()

    def _look(self) -> None:
        if self.book.pending is not None:
            self._watch(self.book.pending)
        self._do("claim", "crook", "node")
        if not self.book.stale_at:
            self._do("declare_stale", "crook")
        self._do("file_promise", "crook", "node", self._promised())
        self._do("claim_stale", "crook", "node")

    def _watch(self, root: Root) -> None:
        for payee, (challenger, _, _) in list(root.slots.items()):
            if challenger:
                self._do("resolve", "crook", payee)
        for payee, amount in [("node", self._promised(root.epoch)), *self.book.paid.items()]:
            shown = root.leaves.get(payee, 0) if root.is_true() else 0
            asked = root.slots.get(payee, ("", 0, 0))[1]
            if amount > max(shown, asked):
                self._do("challenge", "node", "crook", payee, 0, amount)
        self._do("finalize", "crook")

    def _promised(self, epoch: int = MOON) -> int:
        """The most that was promised to the node for a root of this epoch."""
        return max((amount for e, amount in self._promises if e <= epoch), default=0)

    def _do(self, name: str, *args: object) -> None:
        """Try it: what the contract refuses is no move."""
        try:
            getattr(self._model, name)(*args)
        except Refusal:
            return

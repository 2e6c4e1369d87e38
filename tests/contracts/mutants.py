"""Ways to break the contract, each of which some test must notice.

A mutant is one replacement in one source file. `mutate.py` applies them, one at a time.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    # File under contracts/parts, without its ending.
    part: str
    before: str
    after: str


def _drop(name: str, part: str, line: str) -> Mutant:
    """The check is simply not made."""
    return Mutant(name, part, line, "pass")


MUTANTS = (
    Mutant(
        "deposit while paused",
        "channels",
        "assert not guard.paused,",
        "assert guard.paused or True,",
    ),
    _drop("deposit of nothing", "channels", 'assert amount > 0, "deposit: nothing"'),
    _drop("refill while leaving", "channels", 'assert state.exit_at == 0, "deposit: exiting"'),
    _drop(
        "deposit past 104 bits",
        "channels",
        'assert amount <= AMOUNT_MAX - state.balance, "deposit: too much"',
    ),
    Mutant(
        "deposit sets instead of adding",
        "channels",
        "state.balance += amount",
        "state.balance = amount",
    ),
    _drop(
        "charge over the ceiling",
        "channels",
        'assert voucher.charged <= voucher.ceiling, "redeem: over the ceiling"',
    ),
    Mutant(
        "voucher without a signature",
        "channels",
        "assert signatures._is_signed_by(",
        "assert True or signatures._is_signed_by(",
    ),
    Mutant(
        "ceiling not signed",
        "channels",
        "domain, voucher.client, msg.sender, voucher.ceiling",
        "domain, voucher.client, msg.sender, 0",
    ),
    Mutant(
        "voucher for any operator",
        "channels",
        "domain, voucher.client, msg.sender, voucher.ceiling",
        "domain, voucher.client, voucher.client, voucher.ceiling",
    ),
    Mutant("redeem twice", "channels", "state.redeemed += amount", "state.redeemed += 0"),
    Mutant(
        "burn what was not paid", "channels", "state.redeemed += amount", "state.redeemed = charged"
    ),
    Mutant("redeem without taking", "channels", "state.balance -= amount", "state.balance -= 0"),
    Mutant("redeem ignores the room", "channels", "min(state.balance, room))", "state.balance)"),
    Mutant(
        "room not shared by a batch",
        "channels",
        "voucher.charged, room - collected)",
        "voucher.charged, room)",
    ),
    Mutant(
        "room of the whole stake",
        "limits",
        "STAKE_COVER: constant(uint256) = 2",
        "STAKE_COVER: constant(uint256) = 1",
    ),
    Mutant(
        "credit overwritten",
        "channels",
        ".credit = operator.credit + collected",
        ".credit = collected",
    ),
    _drop("stale operator redeems", "channels", 'assert operator.stale_at == 0, "redeem: stale"'),
    _drop("exit without a request", "channels", 'assert state.exit_at > 0, "exit: not requested"'),
    _drop("exit at once", "channels", 'assert block.timestamp >= state.exit_at, "exit: too soon"'),
    Mutant(
        "exit one second late",
        "channels",
        "block.timestamp >= state.exit_at",
        "block.timestamp > state.exit_at",
    ),
    Mutant(
        "exit forgets what was redeemed",
        "channels",
        "Channel(balance=0, redeemed=state.redeemed, exit_at=0)",
        "Channel(balance=0, redeemed=0, exit_at=0)",
    ),
    Mutant(
        "exit twice",
        "channels",
        "Channel(balance=0, redeemed=state.redeemed, exit_at=0)",
        "Channel(balance=state.balance, redeemed=state.redeemed, exit_at=state.exit_at)",
    ),
    Mutant(
        "exit request renewed", "channels", 'assert state.exit_at == 0, "exit: requested"', "pass"
    ),
    Mutant(
        "permit required to work",
        "channels",
        "    self._deposit(client, operator, amount)\n\n\n@external\ndef redeem",
        "    assert used\n    self._deposit(client, operator, amount)\n\n\n@external\ndef redeem",
    ),
    Mutant("high s accepted", "signatures", "if s <= S_MAX:", "if True:"),
    Mutant(
        "zero address signs",
        "signatures",
        "recovered == signer and recovered != empty(address)",
        "recovered == signer",
    ),
    Mutant(
        "anyone signs",
        "signatures",
        "recovered == signer and recovered != empty(address)",
        "recovered != empty(address)",
    ),
    Mutant("wallets cannot sign", "signatures", "if not signer.is_contract:", "if True:"),
    Mutant(
        "any answer of a wallet will do",
        "signatures",
        "return success and len(answer) == 32 and",
        "return success or",
    ),
    Mutant(
        "domain without the chain",
        "signatures",
        "VERSION_HASH, chain.id, self",
        "VERSION_HASH, empty(uint256), self",
    ),
    Mutant(
        "domain without the contract",
        "signatures",
        "VERSION_HASH, chain.id, self",
        "VERSION_HASH, chain.id, empty(address)",
    ),
    Mutant(
        "promise without its payee",
        "signatures",
        "PROMISE_TYPE, operator, payee, epoch",
        "PROMISE_TYPE, operator, operator, epoch",
    ),
    Mutant(
        "promise without its epoch",
        "signatures",
        "payee, epoch, cumulative))",
        "payee, empty(uint256), cumulative))",
    ),
    Mutant("wallet without a gas limit", "signatures", "        gas=WALLET_GAS,\n", ""),
    Mutant(
        "fee on transfer accepted",
        "vault",
        "assert after >= before and after - before == amount",
        "assert after >= before",
    ),
    Mutant(
        "transfer's answer ignored",
        "vault",
        "assert extcall TOKEN.transfer(to, amount, default_return_value=True)",
        "done: bool = extcall TOKEN.transfer(to, amount, default_return_value=True)\n"
        "    assert True",
    ),
    Mutant(
        "deposit's answer ignored",
        "vault",
        "before: uint256 = staticcall TOKEN.balanceOf(self)\n    assert extcall",
        "before: uint256 = staticcall TOKEN.balanceOf(self)\n    assert True or extcall",
    ),
    Mutant("withdraw twice", "vault", "self.owed[msg.sender] = 0", "pass"),
    Mutant("doors unlocked", "payouts", "# pragma nonreentrancy on\n", ""),
    _drop("switch for everyone", "guard", 'assert msg.sender == self.owner, "owner: not you"'),
    _drop("ownership taken", "guard", 'assert msg.sender == self.candidate, "owner: not proposed"'),
    Mutant("offer outlives its owner", "guard", "self.candidate = empty(address)", "pass"),
    _drop("stale operator stakes", "books", 'assert operator.stale_at == 0, "stake: stale"'),
    Mutant("stake overwritten", "books", ".stake = operator.stake + amount", ".stake = amount"),
    Mutant(
        "clock restarts while money waits",
        "books",
        "operator.stake == 0 and operator.credit ==",
        "operator.stake == 0 or operator.credit ==",
    ),
    Mutant(
        "request to leave is never withdrawn",
        "books",
        "    self.operators[msg.sender].unstake_epoch = 0\n    log Staked",
        "    log Staked",
    ),
    Mutant(
        "leave after one root",
        "books",
        ".unstake_epoch = operator.next_epoch + 1",
        ".unstake_epoch = operator.next_epoch",
    ),
    _drop(
        "unstake under a pending root",
        "books",
        'assert self.pending_root[msg.sender].epoch == 0, "unstake: root pending"',
    ),
    _drop(
        "unstake with money un-rooted",
        "books",
        'assert operator.credit == active.total, "unstake: credit un-rooted"',
    ),
    Mutant(
        "unstake twice",
        "books",
        "    self.operators[msg.sender].stake = 0\n"
        "    self.operators[msg.sender].unstake_epoch = 0\n",
        "",
    ),
    _drop(
        "post over a pending root",
        "roots",
        'assert books.pending_root[msg.sender].epoch == 0, "root: one is pending"',
    ),
    _drop("any epoch", "roots", 'assert epoch == operator.next_epoch, "root: not the next epoch"'),
    _drop(
        "post without a stake",
        "roots",
        'assert operator.stake >= limits.STAKE_MIN, "root: stake too small"',
    ),
    _drop("total goes back", "roots", 'assert total >= active_total, "root: total goes back"'),
    _drop(
        "total over credit", "roots", 'assert total <= operator.credit, "root: total over credit"'
    ),
    _drop(
        "growth over the stake",
        "roots",
        "assert total - active_total <= operator.stake // limits.STAKE_COVER, "
        '"root: over the stake"',
    ),
    _drop("stale operator posts", "roots", 'assert operator.stale_at == 0, "root: stale"'),
    Mutant(
        "challenge after the window",
        "roots",
        "block.timestamp < root.posted_at + limits.WINDOW_S",
        "block.timestamp <= root.posted_at + limits.WINDOW_S",
    ),
    _drop(
        "challenge for a later root",
        "roots",
        'assert epoch <= root.epoch, "challenge: for a later root"',
    ),
    Mutant(
        "challenge for less",
        "roots",
        'assert cumulative > slot.cumulative, "challenge: not more"',
        "assert True",
    ),
    Mutant(
        "challenge without evidence",
        "roots",
        "if cumulative > books.paid[operator][payee]:",
        "if False:",
    ),
    Mutant(
        "paid leaves need a promise",
        "roots",
        "if cumulative > books.paid[operator][payee]:",
        "if True:",
    ),
    Mutant("challenge without a bond", "roots", "    vault._pull(limits.BOND)\n", ""),
    Mutant(
        "taken slot keeps the bond",
        "roots",
        "        vault.owed[slot.challenger] += limits.BOND\n",
        "        pass\n",
    ),
    Mutant(
        "taken slot counts twice",
        "roots",
        "if slot.challenger == empty(address):\n        books",
        "if True:\n        books",
    ),
    _drop(
        "answer too late", "roots", 'assert block.timestamp < slot.deadline, "respond: too late"'
    ),
    _drop(
        "answer too small",
        "roots",
        'assert cumulative >= slot.cumulative, "respond: leaf too small"',
    ),
    Mutant(
        "answer without a proof",
        "roots",
        "assert sum_tree._holds(",
        "assert True or sum_tree._holds(",
    ),
    Mutant("answer's bond lost", "roots", "    vault.owed[operator] += limits.BOND\n", ""),
    Mutant(
        "answer reopens the slot",
        "roots",
        "challenger=empty(address), cumulative=cumulative, deadline=0",
        "challenger=empty(address), cumulative=0, deadline=0",
    ),
    Mutant(
        "resolve before the deadline",
        "roots",
        "block.timestamp >= slot.deadline",
        "block.timestamp + 1 >= slot.deadline",
    ),
    Mutant("slash nothing", "roots", "books.operators[operator].stake = 0", "pass"),
    Mutant(
        "whole stake to the challenger",
        "roots",
        "bounty: uint256 = stake // 2",
        "bounty: uint256 = stake",
    ),
    Mutant(
        "cancelled root stays",
        "roots",
        "    books.pending_root[operator] = empty(books.Root)\n    vault.owed[slot",
        "    vault.owed[slot",
    ),
    Mutant("resolve without the bond", "roots", "+= bounty + limits.BOND", "+= bounty"),
    Mutant(
        "reclaim under a pending root",
        "roots",
        'assert books.pending_root[operator].epoch != epoch, "reclaim: root pending"',
        "pass",
    ),
    Mutant(
        "reclaim twice",
        "roots",
        "    self.challenges[operator][epoch][payee].challenger = empty(address)\n",
        "",
    ),
    Mutant(
        "final before the window ends",
        "roots",
        "block.timestamp >= root.posted_at + limits.WINDOW_S",
        "block.timestamp + 1 >= root.posted_at + limits.WINDOW_S",
    ),
    _drop("final while disputed", "roots", 'assert root.disputes == 0, "finalize: disputed"'),
    Mutant(
        "final now is fresh now",
        "roots",
        ".fresh_at = root.posted_at",
        ".fresh_at = block.timestamp",
    ),
    Mutant("sum not checked", "sum_tree", "digest == root and sum == total", "digest == root"),
    Mutant("hash not checked", "sum_tree", "digest == root and sum == total", "sum == total"),
    Mutant("path not used up", "sum_tree", "return path == 0 and", "return"),
    Mutant(
        "leaf without its operator",
        "sum_tree",
        "convert(operator, bytes20)",
        "convert(empty(address), bytes20)",
    ),
    Mutant(
        "sums not hashed",
        "sum_tree",
        "left, convert(left_sum, bytes32), right, convert(right_sum, bytes32)",
        "left, empty(bytes32), right, empty(bytes32)",
    ),
    Mutant("claim twice", "payouts", "books.paid[operator][payee] += amount", "pass"),
    Mutant(
        "claim without counting",
        "payouts",
        "books.operators[operator].claimed = claimed + amount",
        "pass",
    ),
    Mutant(
        "claim beyond the credit",
        "payouts",
        "min(due, books.operators[operator].credit - claimed)",
        "due",
    ),
    Mutant(
        "claim without a proof",
        "payouts",
        "assert sum_tree._holds(",
        "assert True or sum_tree._holds(",
    ),
    Mutant(
        "stale too soon",
        "payouts",
        "block.timestamp >= state.fresh_at + limits.STALE_AFTER_S",
        "block.timestamp + 1 >= state.fresh_at + limits.STALE_AFTER_S",
    ),
    _drop(
        "stale under a pending root",
        "payouts",
        'assert books.pending_root[operator].epoch == 0, "stale: root pending"',
    ),
    _drop("stale twice", "payouts", 'assert state.stale_at == 0, "stale: declared"'),
    Mutant(
        "stale burns nothing",
        "payouts",
        "burned: uint256 = state.stake - state.stake // 2",
        "burned: uint256 = 0",
    ),
    Mutant(
        "estate takes the root's share",
        "payouts",
        "reserve: uint256 = credit - max(active_total, state.claimed)",
        "reserve: uint256 = credit - state.claimed",
    ),
    Mutant(
        "estate of what was paid",
        "payouts",
        "reserve: uint256 = credit - max(active_total, state.claimed)",
        "reserve: uint256 = credit - active_total",
    ),
    Mutant(
        "file after the collection",
        "payouts",
        "block.timestamp < stale_at + limits.COLLECTION_S",
        "block.timestamp <= stale_at + limits.COLLECTION_S",
    ),
    Mutant(
        "file without a signature",
        "payouts",
        "assert signatures._is_signed_by(",
        "assert True or signatures._is_signed_by(",
    ),
    Mutant(
        "file what was paid",
        "payouts",
        "self.weights[operator][payee] = cumulative - paid",
        "self.weights[operator][payee] = cumulative",
    ),
    Mutant(
        "file counts twice",
        "payouts",
        ".weight += cumulative - paid - before",
        ".weight += cumulative - paid",
    ),
    Mutant(
        "first come, first served",
        "payouts",
        "share = weight * estate.reserve // estate.weight",
        "share = min(weight, estate.reserve)",
    ),
    Mutant("stale share twice", "payouts", "self.weights[operator][payee] = 0", "pass"),
    Mutant(
        "divide during the collection",
        "payouts",
        "block.timestamp >= stale_at + limits.COLLECTION_S, ",
        "True, ",
    ),
    Mutant("remainder twice", "payouts", "self.estates[operator].reserve = estate.weight", "pass"),
    Mutant(
        "leaf counts against the estate", "payouts", "self.estates[operator].weight -= less", "pass"
    ),
    Mutant(
        "late leaf changes the division",
        "payouts",
        "if stale_at == 0 or block.timestamp >= stale_at + limits.COLLECTION_S:",
        "if stale_at == 0:",
    ),
)

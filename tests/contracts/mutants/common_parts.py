"""Mutants of terms, the token, the switch."""

from tests.contracts.mutants.mutant import Mutant, drop

COMMON_PARTS = (
    Mutant(
        "room of the whole stake",
        "limits",
        "STAKE_COVER: constant(uint256) = 2",
        "STAKE_COVER: constant(uint256) = 1",
        "channels:redeeming_stops_where_half_the_stake_no_longer_covers_it",
    ),
    Mutant(
        "exit after one root",
        "limits",
        "terms.exit_delay_s > 2 * settled_s",
        "terms.exit_delay_s > settled_s",
        "books:terms_that_cannot_work_are_not_deployed",
    ),
    Mutant(
        "bond over the bounty",
        "limits",
        "terms.stake_min // 2 >= terms.bond",
        "True",
        "books:terms_that_cannot_work_are_not_deployed",
    ),
    drop(
        "stale within a window",
        "limits",
        'assert terms.stale_after_s > settled_s, "terms: stale too soon"',
        "books:terms_that_cannot_work_are_not_deployed",
    ),
    Mutant(
        "delays without end",
        "limits",
        '<= DELAY_S_MAX, "terms: too long"',
        '<= max_value(uint256), "terms: too long"',
        "books:terms_that_cannot_work_are_not_deployed",
    ),
    Mutant(
        "fee on transfer accepted",
        "vault",
        "assert after >= before and after - before == amount",
        "assert after >= before",
        "hostile_tokens:a_token_that_keeps_a_fee_is_refused",
    ),
    Mutant(
        "transfer's answer ignored",
        "vault",
        "assert extcall TOKEN.transfer(to, amount, default_return_value=True)",
        "done: bool = extcall TOKEN.transfer(to, amount, default_return_value=True)\n"
        "    assert True",
        "hostile_tokens:a_token_that_answers_false_is_refused",
    ),
    Mutant(
        "deposit's answer ignored",
        "vault",
        "before: uint256 = staticcall TOKEN.balanceOf(self)\n    assert extcall",
        "before: uint256 = staticcall TOKEN.balanceOf(self)\n    assert True or extcall",
        "channels:a_deposit_is_the_clients_escrow_with_one_operator",
    ),
    Mutant(
        "withdraw twice",
        "vault",
        "self.owed[account] = 0",
        "pass",
        "roots:an_answer_gives_the_bond_to_the_operator",
    ),
    Mutant(
        "withdraw to the caller",
        "vault",
        "self._send(account, amount)",
        "self._send(msg.sender, amount)",
        "roots:an_answer_gives_the_bond_to_the_operator",
    ),
    Mutant(
        "burned stake is lost count of",
        "vault",
        "self.owed[BURN_ADDRESS] += amount",
        "pass",
        "roots:no_answer_costs_the_stake_and_the_root",
    ),
    Mutant(
        "burning waits for the token",
        "vault",
        "self.owed[BURN_ADDRESS] += amount",
        "self._send(BURN_ADDRESS, amount)",
        "hostile_tokens:no_frozen_account_keeps_a_dispute_from_ending",
    ),
    drop(
        "token without code",
        "vault",
        'assert token.is_contract, "vault: no token"',
        "books:a_token_without_code_is_not_deployed",
    ),
    drop(
        "switch for everyone",
        "guard",
        'assert msg.sender == self.owner, "owner: not you"',
        "books:only_the_owner_has_the_switch",
    ),
    drop(
        "ownership taken",
        "guard",
        'assert msg.sender == self.candidate, "owner: not proposed"',
        "books:the_switch_is_handed_over_in_two_steps",
    ),
    Mutant(
        "offer outlives its owner",
        "guard",
        "self.candidate = empty(address)",
        "pass",
        "books:the_switch_is_given_up_only_in_the_open_position",
    ),
    drop(
        "renounced while paused",
        "guard",
        'assert not self.paused, "owner: paused"',
        "books:the_switch_is_given_up_only_in_the_open_position",
    ),
)

"""Bugs in the budgets of API keys, and in who pays for what was bought for them."""

from sim.mutants.mutant import Mutant

_LEDGER = "tests/coordinator/ledger"

KEYS = (
    Mutant(
        "the budget is not checked at the hold",
        "coordinator/ledger/key_budgets.py",
        "return Result.EXCEEDS_BUDGET",
        "return Result.CREATED",
        seeds=20,
        test=f"{_LEDGER}/test_key_budgets.py::test_holds_add_up_against_the_budget_until_they_end",
    ),
    Mutant(
        "holds of one commit do not share their key's budget",
        "coordinator/ledger/key_budgets.py",
        "self._taken_nano[key] += amount_nano\n",
        "self._taken_nano[key] += 0\n",
        test=f"{_LEDGER}/test_key_budgets.py::test_holds_of_one_group_commit_share_one_budget",
    ),
    Mutant(
        "a revoked key is not noticed at the hold",
        "coordinator/ledger/key_budgets.py",
        "if funds is None or funds.is_revoked:",
        "if funds is None:",
        seeds=20,
        test=f"{_LEDGER}/test_key_budgets.py"
        "::test_a_revoked_key_holds_nothing_and_its_open_holds_are_still_paid",
    ),
    Mutant(
        "what is held for a key does not count against its budget",
        "coordinator/db/api_keys.py",
        "api_keys.c.budget_nano - api_keys.c.spent_nano - _HELD_NANO,",
        "api_keys.c.budget_nano - api_keys.c.spent_nano,",
        seeds=20,
    ),
    Mutant(
        "what was charged to a key does not count against its budget",
        "coordinator/db/api_keys.py",
        "api_keys.c.budget_nano - api_keys.c.spent_nano - _HELD_NANO,",
        "api_keys.c.budget_nano - _HELD_NANO,",
        seeds=20,
    ),
    Mutant(
        "what a key was charged is not written down",
        "coordinator/db/transfers.py",
        "    store_spending(conn, applied.spent)\n",
        "",
        seeds=20,
    ),
    Mutant(
        "what is paid late is not charged to the key",
        "coordinator/ledger/machine.py",
        "transfer.kind not in (_POST, _POSTED)",
        "transfer.kind is not _POST",
        test=f"{_LEDGER}/test_key_budgets.py::test_a_late_capture_counts_as_spent_too_and_once",
    ),
    Mutant(
        "a restarted coordinator has forgotten whose key pays",
        "coordinator/leasing/restoring.py",
        "            row.terms.api_key_id,\n",
        "            None,\n",
        seeds=25,
    ),
    Mutant(
        "the operator pays although the client has signed",
        "coordinator/leasing/open_lease.py",
        "return is_of_before and self.delivered is None",
        "return is_of_before",
        test="tests/coordinator/settling/test_deliveries.py"
        "::test_the_word_of_a_client_on_a_cut_answer_survives_a_restart",
    ),
    Mutant(
        "a lease for a key does not name it in its hold",
        "coordinator/leasing/granting.py",
        "hold(opened.funds, timeout_at_ms=expires_at_ms, api_key_id=opened.api_key_id)",
        "hold(opened.funds, timeout_at_ms=expires_at_ms)",
        seeds=20,
    ),
)

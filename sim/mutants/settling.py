"""Bugs in what a receipt is worth, and when it is paid."""

from sim.mutants.mutant import Mutant

_SETTLING = "tests/coordinator/settling"
_VERDICTS = f"{_SETTLING}/test_verdicts.py"

SETTLING = (
    Mutant(
        "of two counts the node's is paid",
        "coordinator/settling/verdicts.py",
        "min(receipt.amount_nano, counted_nano))",
        "receipt.amount_nano)",
        test=f"{_VERDICTS}::test_of_two_counts_the_smaller_is_paid",
    ),
    Mutant(
        "the window is ignored: a lone receipt is paid whole",
        "coordinator/settling/verdicts.py",
        "min(billed.output_tokens, proof.output_tokens + window_tokens)",
        "billed.output_tokens",
        test=f"{_VERDICTS}::test_what_is_paid_exceeds_what_the_client_signed_by_one_window_at_most",
    ),
    Mutant(
        "before the first link input and output get a window each",
        "coordinator/settling/verdicts.py",
        "window_tokens - input_tokens)",
        "window_tokens)",
        seeds=4,
        test=f"{_VERDICTS}"
        "::test_before_the_first_link_one_window_is_paid_input_and_output_together",
    ),
    Mutant(
        "a client takes back what it signed",
        "coordinator/settling/verdicts.py",
        "max(counted.output_tokens, min(proof.output_tokens, billed.output_tokens))",
        "counted.output_tokens",
        test=f"{_VERDICTS}::test_a_client_cannot_take_back_what_it_signed",
    ),
    Mutant(
        "a lone receipt is paid while its job may still run",
        "coordinator/settling/verdicts.py",
        "    if not is_due:\n",
        "    if False:\n",
        test=f"{_VERDICTS}::test_a_lone_receipt_waits_until_its_job_can_be_over",
    ),
    Mutant(
        "a receipt for a job that was never opened is paid",
        "coordinator/settling/verdicts.py",
        "    if not proof.is_opened:\n",
        "    if False:\n",
        test=f"{_SETTLING}/test_cut_answers.py"
        "::test_a_receipt_of_a_job_that_was_never_opened_is_worth_nothing",
    ),
    Mutant(
        "a receipt is acknowledged before it is durable",
        "coordinator/settling/receipt_service.py",
        "            await self._payments.store(row)\n",
        "",
        test=f"{_SETTLING}/test_settling.py"
        "::test_after_an_outage_a_receipt_that_had_been_acknowledged_is_paid",
    ),
    Mutant(
        "a lone receipt that waits keeps the agreed pair out",
        "coordinator/settling/receipt_service.py",
        "if acceptance is None and opened.has_receipt:",
        "if opened.has_receipt:",
        test=f"{_SETTLING}/test_settling.py"
        "::test_the_receipt_that_was_paid_is_the_one_that_is_kept",
    ),
    Mutant(
        "the first receipt stays stored although another one was paid",
        "coordinator/db/receipts.py",
        "WHERE receipts.state = 'pending'",
        "WHERE receipts.state = 'never'",
        test=f"{_SETTLING}/test_settling.py"
        "::test_the_receipt_that_was_paid_is_the_one_that_is_kept",
    ),
    Mutant(
        "another lone receipt replaces the one that waits",
        "coordinator/settling/receipt_service.py",
        "            await self._check_same(receipt, lease_id)\n",
        "            pass\n",
        test="tests/coordinator/leasing/test_registry.py"
        "::test_another_lone_receipt_does_not_replace_the_one_that_waits",
    ),
    Mutant(
        "a receipt that came after its hold had ended is taken",
        "coordinator/settling/receipt_service.py",
        "if not opened.is_payable(now_ms):",
        "if False:",
        test=f"{_SETTLING}/test_settling.py::test_a_receipt_that_comes_before_the_sweep_but_after_its_time_is_refused",
    ),
    Mutant(
        "a receipt that was paid in time is paid late as well",
        "coordinator/settling/payments.py",
        "                await post(is_late=False)\n                return\n",
        "                await post(is_late=False)\n",
        seeds=5,
    ),
    Mutant(
        "a receipt that came in time, and is paid late, finds its hold gone",
        "coordinator/settling/payments.py",
        "        await post(is_late=True)\n",
        "        await post(is_late=False)\n",
        test=f"{_SETTLING}/test_settling.py"
        "::test_a_hold_that_times_out_on_the_way_to_the_books_is_paid_all_the_same",
    ),
    Mutant(
        "a client pays for what the operator's own restart cut",
        "coordinator/settling/payments.py",
        "is_gift = is_lone and opened.was_cut_by_us",
        "is_gift = False",
        seeds=20,
        test=f"{_SETTLING}/test_cut_answers.py"
        "::test_an_answer_that_a_restart_of_ours_has_cut_is_paid_by_the_operator",
    ),
    Mutant(
        "a client elsewhere is believed that it got nothing",
        "coordinator/settling/receipt_service.py",
        "return opened.is_watched_by_us and said.units == Units()",
        "return said.units == Units()",
        test=f"{_SETTLING}/test_deliveries.py"
        "::test_a_client_elsewhere_that_got_nothing_holds_its_money_until_its_node_has_spoken",
    ),
)

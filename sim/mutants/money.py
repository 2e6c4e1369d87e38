"""Bugs in the books: what is charged, who gets it, and how often."""

from sim.mutants.mutant import Mutant

MONEY = (
    Mutant(
        "the fee is rounded up, and the node's share is what is left",
        "protocol/money.py",
        "provider_nano = amount_nano * (BASIS_POINTS - fee_bps) // BASIS_POINTS\n",
        "provider_nano = amount_nano - amount_nano * fee_bps // BASIS_POINTS\n",
        seeds=2,
        test="tests/protocol/test_money.py",
    ),
    Mutant(
        "the fee goes to the node and the share to the operator",
        "coordinator/ledger/postings.py",
        "provider_nano, fee_nano = split_fee(amount_nano, fee_bps)",
        "fee_nano, provider_nano = split_fee(amount_nano, fee_bps)",
        seeds=2,
    ),
    Mutant(
        "a repeated posting is executed again under another id",
        "coordinator/ledger/machine.py",
        "                existing += 1\n",
        "                self._apply(transfer._replace(id=transfer.id[::-1]))\n",
        test="tests/coordinator/ledger/test_postings.py::test_every_posting_may_be_repeated",
    ),
    Mutant(
        "an expired hold can be captured",
        "coordinator/ledger/machine.py",
        "if is_expired and transfer.kind is not TransferKind.EXPIRE:",
        "if False:",
        test="tests/coordinator/ledger/test_machine.py"
        "::test_a_hold_is_over_at_its_timeout_even_before_the_sweep",
    ),
    Mutant(
        "a hold is never given back when its time is over",
        "coordinator/db/writer.py",
        "            for hold in due:\n                if not is_kept(hold):",
        "            for hold in due:\n                if False:",
        seeds=3,
    ),
    Mutant(
        "the end of a job's row is never written",
        "coordinator/db/jobs.py",
        "attempt = _ANY_ATTEMPT if state is JobState.SETTLED else lease.attempt",
        "attempt = -1",
        seeds=1,
    ),
    Mutant(
        "a receipt is acknowledged before it is durable",
        "coordinator/settling/receipt_desk.py",
        "            await self._payments.store(row)\n            opened.has_receipt = True\n",
        "            opened.has_receipt = True\n",
        test="tests/coordinator/settling/test_settling.py"
        "::test_after_an_outage_a_receipt_that_had_been_acknowledged_is_paid",
    ),
    Mutant(
        "of two counts the node's is paid",
        "coordinator/settling/verdicts.py",
        "return Verdict(ReceiptState.DISPUTED, min(receipt.amount_nano, counted_nano))",
        "return Verdict(ReceiptState.DISPUTED, receipt.amount_nano)",
        test="tests/coordinator/settling/test_verdicts.py::test_of_two_counts_the_smaller_is_paid",
    ),
)

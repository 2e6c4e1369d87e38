"""Bugs in the books: what is charged, who gets it, and how often."""

from sim.mutants.mutant import Mutant

_LEDGER = "tests/coordinator/ledger"
_DB = "tests/coordinator/db"

MONEY = (
    Mutant(
        "a charge is rounded down",
        "protocol/money.py",
        "return -(-numerator // denominator)",
        "return numerator // denominator",
        seeds=3,
        test="tests/protocol/test_money.py::test_a_charge_rounds_up_once_per_job",
    ),
    Mutant(
        "the fee is rounded up, and the node's share is what is left",
        "protocol/money.py",
        "provider_nano = amount_nano * (BASIS_POINTS - fee_bps) // BASIS_POINTS\n",
        "provider_nano = amount_nano - amount_nano * fee_bps // BASIS_POINTS\n",
        seeds=6,
    ),
    Mutant(
        "the fee goes to the node and the share to the operator",
        "coordinator/ledger/postings.py",
        "provider_nano, fee_nano = split_fee(amount_nano, fee_bps)",
        "fee_nano, provider_nano = split_fee(amount_nano, fee_bps)",
        seeds=5,
    ),
    Mutant(
        "a repeated posting is executed again under another id",
        "coordinator/ledger/machine.py",
        "                existing += 1\n",
        "                self._apply(transfer._replace(id=transfer.id[::-1]))\n",
        test=f"{_LEDGER}/test_postings.py::test_every_posting_may_be_repeated",
    ),
    Mutant(
        "a captured hold stays open and can be captured again",
        "coordinator/ledger/machine.py",
        "self.holds.pop(transfer.pending_id)",
        "self.holds[transfer.pending_id]",
        test=f"{_LEDGER}/test_machine.py::test_a_hold_is_resolved_at_most_once",
    ),
    Mutant(
        "a capture frees only as much as it takes",
        "coordinator/ledger/machine.py",
        "debit.debits_pending -= hold.amount_nano * sign",
        "debit.debits_pending -= amount",
        seeds=5,
    ),
    Mutant(
        "a capture may take more than was held",
        "coordinator/ledger/machine.py",
        "if transfer.amount_nano > hold.amount_nano:",
        "if False:",
        test=f"{_LEDGER}/test_machine.py::test_a_resolution_must_match_its_hold",
    ),
    Mutant(
        "an expired hold can be captured",
        "coordinator/ledger/machine.py",
        "if is_expired and transfer.kind is not TransferKind.EXPIRE:",
        "if False:",
        test=f"{_LEDGER}/test_machine.py::test_a_hold_is_over_at_its_timeout_even_before_the_sweep",
    ),
    Mutant(
        "timeouts are judged by the newest stamp instead of the clock",
        "coordinator/ledger/machine.py",
        "batch = _Batch(book, now_ms)",
        "batch = _Batch(book, first_at_ns // _NS_PER_MS)",
        test=f"{_LEDGER}/test_machine.py::test_a_stamp_from_a_clock_that_was_ahead_expires_nothing",
    ),
    Mutant(
        "a chain that fails leaves its first transfers behind",
        "coordinator/ledger/machine.py",
        "            self._undo(start, opened)\n",
        "",
        test=f"{_LEDGER}/test_machine.py::test_a_chain_happens_wholly_or_not_at_all",
    ),
    Mutant(
        "a transfer's amount is left out of the hash chain",
        "coordinator/ledger/hash_chain.py",
        "(sequence, created_at_ns, *transfer)",
        "(sequence, created_at_ns, *transfer._replace(amount_nano=0))",
        test=f"{_LEDGER}/test_hash_chain.py",
    ),
    Mutant(
        "a transfer's hash does not cover the ones before it",
        "coordinator/ledger/hash_chain.py",
        "_sha256(previous + _pack(",
        "_sha256(GENESIS + _pack(",
        test=f"{_LEDGER}/test_hash_chain.py",
    ),
    Mutant(
        "a head that its coordinator did not sign is believed",
        "coordinator/db/heads.py",
        "if not head.is_signed or signer",
        "if signer",
        test=f"{_DB}/test_audits.py::test_books_that_contradict_their_head_do_not_open",
    ),
    Mutant(
        "the head of the books is never signed",
        "coordinator/head_signer.py",
        "every = 1 if look % LOOKS_MAX == 0 else TRANSFERS_MAX",
        "every = TRANSFERS_MAX * look",
        test="tests/coordinator/test_head_signer.py",
    ),
    Mutant(
        "a hold is never given back when its time is over",
        "coordinator/db/writer.py",
        "                if not is_kept(hold):",
        "                if False:",
        seeds=5,
    ),
    Mutant(
        "rows of a posting that was refused are written all the same",
        "coordinator/db/writer.py",
        "            if answer.result is Result.CREATED\n",
        "",
        test=f"{_DB}/test_writer.py"
        "::test_rows_are_written_with_the_posting_that_happens_and_only_then",
    ),
    Mutant(
        "the end of a job's row is never written",
        "coordinator/db/jobs.py",
        "attempt = _ANY_ATTEMPT if state is JobState.SETTLED else lease.attempt",
        "attempt = -1",
        seeds=5,
    ),
    Mutant(
        "a job that was paid can expire with another hold",
        "coordinator/db/jobs.py",
        "    .where(jobs.c.state != literal_column(\"'settled'\")),\n",
        ",\n",
        test=f"{_DB}/test_jobs.py::test_the_order_in_which_attempts_end_does_not_matter",
    ),
)

"""Bugs in a node: which leases it takes, what it bills, what it keeps."""

from sim.mutants.mutant import Mutant

_JOBS = "tests/capanode/test_jobs.py"

NODE = (
    Mutant(
        "a lease can be opened twice",
        "capanode/admission.py",
        "if lease.lease_id in self._ids:",
        "if False:",
        test=f"{_JOBS}::test_a_lease_is_good_for_one_opening",
    ),
    Mutant(
        "a spent lease is forgotten while it can still be opened",
        "capanode/admission.py",
        "(lease.open_before_ms + CLOCK_SKEW_MAX_MS, lease.lease_id)",
        "(lease.open_before_ms, lease.lease_id)",
        test="tests/capanode/test_admission.py"
        "::test_a_lease_is_remembered_for_as_long_as_it_could_be_opened",
    ),
    Mutant(
        "a lease at another price than the offer's is taken",
        "capanode/admission.py",
        "if granted.price not in (price, price.without_cached):",
        "if False:",
        test=f"{_JOBS}::test_a_price_other_than_the_offers_is_refused_even_a_higher_one",
    ),
    Mutant(
        "a slot is never freed",
        "capanode/seats.py",
        "        self._running.discard(lease_id)\n",
        "",
        seeds=5,
    ),
    Mutant(
        "more jobs run than there are slots",
        "capanode/seats.py",
        "        if len(self._running) < self.slots:\n",
        "        if True:\n",
        seeds=8,
    ),
    Mutant(
        "a client sees its receipt before it is durable",
        "capanode/jobs/served_job.py",
        "await wait_durable(durable)",
        "pass",
        test=f"{_JOBS}::test_the_receipt_is_durable_before_the_client_sees_it",
    ),
    Mutant(
        "a node bills what its worker made, sent or not",
        "capanode/metering.py",
        "self._job.window.sent_tokens",
        "self._produced_tokens",
        test=f"{_JOBS}::test_a_client_that_stops_signing_gets_two_windows_and_is_cut",
    ),
    Mutant(
        "a receipt that the coordinator cannot take now is given up",
        "capanode/control.py",
        "if error.code in RETRYABLE_LATER:",
        "if False:",
        test="tests/capanode/test_node.py"
        "::test_a_receipt_is_handed_in_until_it_is_acknowledged_and_then_no_more",
    ),
    Mutant(
        "an opened lease is not reported",
        "capanode/opened_leases.py",
        ".append(lease.lease_id)",
        "",
        test="tests/capanode/test_opened_leases.py",
    ),
)

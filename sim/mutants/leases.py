"""Bugs in a lease's life: granted, opened, ended, restored."""

from sim.mutants.mutant import Mutant

_LEASING = "tests/coordinator/leasing"
_REGISTRY = f"{_LEASING}/test_registry.py"
_OPENINGS = f"{_LEASING}/test_openings.py"

LEASES = (
    Mutant(
        "a seat is never returned",
        "coordinator/leasing/registry.py",
        "if self._market.book.release(opened.lease.message.lease_id):",
        "if False:",
        test=f"{_OPENINGS}::test_a_lease_that_is_never_opened_gives_seat_and_money_back",
    ),
    Mutant(
        "a rollback deletes a lease that it did not create",
        "coordinator/leasing/registry.py",
        "if self._by_id.get(granted.lease_id) is not opened:",
        "if granted.lease_id not in self._by_id:",
        test=f"{_REGISTRY}::test_after_an_outage_a_squatter_cannot_make_a_lease_be_forgotten",
    ),
    Mutant(
        "a rollback keeps the probe of the breaker",
        "coordinator/market/market.py",
        "self.reputation.give_probe_back(lease.node)",
        "pass",
        test=f"{_REGISTRY}::test_a_reservation_that_is_cancelled_gives_its_probe_back",
    ),
    Mutant(
        "a request without money takes seats and probes",
        "coordinator/leasing/granting.py",
        "        await self._funds.check(asked.client)\n",
        "",
        test=f"{_REGISTRY}::test_a_request_without_money_takes_no_probe_no_seat_and_no_row",
    ),
    Mutant(
        "a lease that has ended is restored after a restart",
        "coordinator/db/leases.py",
        "        .where(leases.c.state == LeaseState.OPEN.value)\n        .order_by(",
        "        .order_by(",
        test="tests/coordinator/db/test_leases.py::test_open_leases_are_what_a_restart_takes_up",
    ),
    Mutant(
        "a lease can be ended twice",
        "coordinator/db/leases.py",
        '    .where(leases.c.state == bindparam("old_state")),\n',
        '    .where(bindparam("old_state") == bindparam("old_state")),\n',
        test="tests/coordinator/db/test_leases.py::test_a_lease_ends_once",
    ),
    Mutant(
        "after an outage nodes get no time to hand receipts in",
        "coordinator/leasing/open_lease.py",
        "return max(self.hold_expires_at_ms, self.restored_at_ms + RECEIPT_GRACE_MS)",
        "return self.hold_expires_at_ms",
        test="tests/coordinator/settling/test_settling.py"
        "::test_after_an_outage_receipts_are_taken_for_as_long_as_after_a_deadline",
    ),
    Mutant(
        "a lease that was never opened keeps its seat",
        "coordinator/leasing/openings.py",
        "opened.lease.message.open_before_ms <= late_ms",
        "False",
        test=f"{_OPENINGS}::test_a_lease_that_is_never_opened_gives_seat_and_money_back",
    ),
    Mutant(
        "strangers may leave any number of leases unopened",
        "coordinator/leasing/openings.py",
        "if self._unopened[client] < record.unopened_max:",
        "if True:",
        test=f"{_OPENINGS}::test_a_stranger_gets_few_leases_that_it_does_not_open",
    ),
    Mutant(
        "a client that does not open its leases begins anew with each restart",
        "coordinator/leasing/restoring.py",
        "past.state is LeaseState.RELEASED and not (",
        "False and not (",
        test=f"{_REGISTRY}::test_a_client_that_opened_nothing_is_known_after_a_restart",
    ),
    Mutant(
        "an upload keeps its seat while others wait",
        "coordinator/leasing/openings.py",
        "(opened.opening is Opening.AWAITED or opened.is_arriving)",
        "opened.opening is Opening.AWAITED",
        test=f"{_OPENINGS}::test_leases_whose_jobs_cannot_run_yield_their_seats_to_those_who_wait",
    ),
    Mutant(
        "a node may report leases of other nodes as opened",
        "coordinator/leasing/registry.py",
        "        at_node = self._by_node.get(node, {})\n",
        "        at_node = self._by_id\n",
        test=f"{_OPENINGS}::test_a_node_reports_only_its_own_leases",
    ),
    Mutant(
        "leases of a node's earlier process keep their seats",
        "coordinator/leasing/registry.py",
        "opened.lease.message.incarnation_ms < incarnation_ms",
        "opened.lease.message.incarnation_ms > incarnation_ms",
        test=f"{_REGISTRY}::test_a_younger_process_of_a_node_frees_the_seats_of_the_older",
    ),
    Mutant(
        "a hold that runs out without a receipt leaves no mark",
        "coordinator/leasing/registry.py",
        "if self.end(opened) and was_opened:",
        "if self.end(opened) and False:",
        test=f"{_REGISTRY}::test_a_hold_without_a_receipt_counts_against_the_party_that_failed",
    ),
    Mutant(
        "a lone receipt is a success of its node",
        "coordinator/settling/receipt_service.py",
        "is_evidence = has_accepted or",
        "is_evidence = True or",
        test=f"{_REGISTRY}::test_a_lone_receipt_is_no_success_of_its_node",
    ),
    Mutant(
        "two clients that choose the same job id share its leases",
        "coordinator/ledger/postings.py",
        'f"lease/{client}/{attempt}"',
        'f"lease/{attempt}"',
        seeds=25,
    ),
    Mutant(
        "a job is over by its client's clock",
        "coordinator/leasing/leased_jobs.py",
        "return now_ms + asked.deadline_at_ms - asked.issued_at_ms",
        "return asked.deadline_at_ms",
        test=f"{_LEASING}/test_leased_jobs.py"
        "::test_a_job_gets_its_whole_time_whatever_its_clients_clock_says",
    ),
    Mutant(
        "a step of the wall clock moves the time that money depends on",
        "protocol/programs/steady_clock.py",
        "self._steady_ms += max(-limit_ms, min(limit_ms, ahead_ms))",
        "self._steady_ms = float(wall_ms)",
        test="tests/coordinator/test_clock_jumps.py",
    ),
)

"""Bugs in whom the market trusts, and with how much."""

from sim.mutants.mutant import Mutant

_MARKET = "tests/coordinator/market"

MARKET = (
    Mutant(
        "a node's evidence about itself counts",
        "coordinator/market/voices.py",
        "if client == node or at_stake_nano <= 0:",
        "if at_stake_nano <= 0:",
        test=f"{_MARKET}/test_voices.py::test_free_jobs_and_jobs_from_oneself_count_for_nothing",
    ),
    Mutant(
        "every report of one client counts whole",
        "coordinator/market/voices.py",
        "return 1.0 / (1.0 + count)",
        "return 1.0",
        test=f"{_MARKET}/test_voices.py"
        "::test_three_hundred_self_made_receipts_do_not_wash_a_cutting_node_clean",
    ),
    Mutant(
        "every job that a crash ends is another failure of the node's machine",
        "coordinator/market/reputation.py",
        " or at_ms <= record.fault_at_ms",
        "",
        test=f"{_MARKET}/test_machines.py::test_one_crash_after_a_quiet_hour_blocks_no_neighbour",
    ),
    Mutant(
        "nodes of one machine are counted apart",
        "coordinator/market/offers/book.py",
        "machine=self.machines.pin(network_of(offer.addresses)),",
        "machine=self.machines.pin(offer.node),",
        test=f"{_MARKET}/test_seats.py"
        "::test_fifty_identities_on_one_machine_get_no_more_than_the_machine",
    ),
    Mutant(
        "a claim of many slots is believed",
        "coordinator/market/seats.py",
        "SEATS_AT_START = 4.0",
        "SEATS_AT_START = 4_000.0",
        seeds=8,
        test=f"{_MARKET}/test_seats.py"
        "::test_a_claim_of_a_thousand_slots_is_worth_what_it_has_answered",
    ),
    Mutant(
        "a failure costs no seats",
        "coordinator/market/seats.py",
        "return max(seats / 2, SEATS_MIN)",
        "return max(seats, SEATS_MIN)",
        seeds=8,
        test=f"{_MARKET}/test_seats.py::test_a_failure_halves_what_a_node_has_earned",
    ),
    Mutant(
        "a breaker lets every job through once it is half open",
        "coordinator/market/breaker.py",
        "self.probe_until_ms = now_ms + PROBE_TIMEOUT_MS",
        "self.probe_until_ms = 0",
        test=f"{_MARKET}/test_breaker.py::test_one_probe_at_a_time_after_the_wait",
    ),
    Mutant(
        "refusals to one client keep a node from all",
        "coordinator/market/breaker.py",
        "REFUSED_TO_COOL = 3",
        "REFUSED_TO_COOL = 1",
        test=f"{_MARKET}/test_breaker.py"
        "::test_one_client_that_is_refused_keeps_the_node_from_nobody_else",
    ),
    Mutant(
        "a silent node is never given up",
        "coordinator/buyer/attempt.py",
        "if silent_until < deadline:",
        "if False:",
        test="tests/coordinator/buyer/test_client.py"
        "::test_a_node_that_accepts_and_then_says_nothing_is_left_for_another",
    ),
    Mutant(
        "a node whose control stream is silent stays in the market",
        "coordinator/leasing/control.py",
        "if self._heard_at[node] < now - BUSY_SILENT_AFTER_S or not self._leases.runs_at(node)",
        "if self._heard_at[node] < 0",
        test="tests/coordinator/leasing/test_control.py::test_a_node_that_falls_silent_is_detached",
    ),
    Mutant(
        "an offer is checked again each time it is handed on",
        "coordinator/market/offers/intake.py",
        "if fingerprint in self._seen:",
        "if False:",
        test=f"{_MARKET}/test_offer_intake.py"
        "::test_a_repeated_offer_costs_no_second_signature_check",
    ),
    Mutant(
        "a newcomer overtakes those who wait for a turn",
        "coordinator/leasing/turns.py",
        "if is_choosy or model not in self._queues:",
        "if True:",
        test="tests/coordinator/leasing/test_turns.py"
        "::test_a_newcomer_does_not_overtake_those_who_wait",
    ),
)

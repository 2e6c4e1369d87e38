"""Bugs in what the parties sign, and in how it is checked."""

from sim.mutants.mutant import Mutant

_PROTOCOL = "tests/protocol"
_RECEIPTS = f"{_PROTOCOL}/test_receipts.py"
_COUNTERSIGNING = f"{_PROTOCOL}/test_countersigning.py"

WIRE = (
    Mutant(
        "any number of tokens without a text is an answer",
        "protocol/client_session.py",
        "if is_answer and is_long and not self._has_text:",
        "if False:",
        test=f"{_PROTOCOL}/test_session.py::test_an_answer_of_tokens_without_a_text_is_none",
    ),
    Mutant(
        "an acceptance of another receipt is taken",
        "protocol/receipts.py",
        "counted.receipt_digest == receipt.digest and counted.lease_id == billed.lease_id",
        "True",
        test=f"{_RECEIPTS}::test_an_acceptance_must_fit_its_receipt_and_itself",
    ),
    Mutant(
        "a receipt may ask for another amount than its units cost",
        "protocol/receipts.py",
        "billed.amount_nano == charge_nano(granted.price, billed.units, billed.finish)",
        "True",
        test=f"{_RECEIPTS}::test_a_receipt_is_refused_for_each_wrong_field",
    ),
    Mutant(
        "a receipt of another lease is taken",
        "protocol/receipts.py",
        "billed.lease_digest == lease.digest and billed.lease_id == granted.lease_id",
        "True",
        test=f"{_RECEIPTS}::test_a_receipt_is_refused_for_each_wrong_field",
    ),
    Mutant(
        "a node works for a coordinator that it does not list",
        "protocol/receipts.py",
        "        lease.signer in coordinators,\n",
        "        True,\n",
        test=f"{_RECEIPTS}::test_a_lease_of_an_unlisted_coordinator_is_refused",
    ),
    Mutant(
        "a failure before the first output is charged",
        "protocol/receipts.py",
        "if not is_charged or units == Units():",
        "if units == Units():",
        test=f"{_RECEIPTS}::test_what_delivered_nothing_is_free",
    ),
    Mutant(
        "an opening by another client is accepted",
        "protocol/countersigning.py",
        "if not opening.signer == said.client == granted.client:",
        "if False:",
        test=f"{_COUNTERSIGNING}::test_an_opening_of_another_party_lease_or_node_is_refused",
    ),
    Mutant(
        "an opening of another lease is accepted",
        "protocol/countersigning.py",
        "if said.lease_digest != lease.digest:",
        "if False:",
        test=f"{_COUNTERSIGNING}::test_an_opening_of_another_party_lease_or_node_is_refused",
    ),
    Mutant(
        "a link is believed without being hashed down to the anchor",
        "protocol/windows.py",
        "if hashed != self.link:",
        "if False:",
        test=f"{_COUNTERSIGNING}::test_links_that_the_client_did_not_reveal_are_refused",
    ),
    Mutant(
        "a link stands for one window more than was signed",
        "protocol/windows.py",
        "return max(index - 1, 0) * self.window_tokens",
        "return index * self.window_tokens",
        test=f"{_PROTOCOL}/test_windows.py"
        "::test_a_link_stands_for_what_was_counted_within_one_step",
    ),
    Mutant(
        "a client signs for a window that has not arrived",
        "protocol/windows.py",
        "return 1 + output_tokens // self.window_tokens",
        "return 1 + _divide_up(output_tokens, self.window_tokens)",
        test=f"{_PROTOCOL}/test_windows.py"
        "::test_a_link_stands_for_what_was_counted_within_one_step",
    ),
    Mutant(
        "a node streams on without a signature",
        "protocol/output_window.py",
        "self.sent_tokens + tokens <= self._may_send",
        "True",
        test="tests/capanode/test_jobs.py"
        "::test_a_client_that_stops_signing_gets_two_windows_and_is_cut",
    ),
    Mutant(
        "the salt is left out of the payload's digest",
        "protocol/payload.py",
        "    digest = hashlib.sha256(salt)\n",
        "    digest = hashlib.sha256()\n",
        test=f"{_PROTOCOL}/test_session.py::test_the_pinned_digest_is_of_the_salt_and_the_payload",
    ),
    Mutant(
        "the salt is left out of the output's digest",
        "protocol/payload.py",
        "(self._salt, self._tokens",
        "(b'', self._tokens",
        test=f"{_PROTOCOL}/test_payload.py",
    ),
    Mutant(
        "a client counts output beyond its lease",
        "protocol/client_session.py",
        "if tokens > self._units_max.output_tokens:",
        "if False:",
        test=f"{_PROTOCOL}/test_session.py::test_more_tokens_than_leased_are_refused",
    ),
    Mutant(
        "an opening may allow more than was leased",
        "protocol/late_payloads.py",
        'late.units_max.fits_in(lease.units_max), "the opening',
        'True, "the opening',
        test=f"{_PROTOCOL}/test_late_payloads.py"
        "::test_a_node_refuses_an_opening_that_does_not_fit_its_request",
    ),
    Mutant(
        "evidence need not name a payload",
        "protocol/countersigning.py",
        "    if not request.is_ahead:\n        return\n",
        "    if request.payload_bytes:\n        return\n",
        test=f"{_PROTOCOL}/test_late_payloads.py"
        "::test_evidence_that_names_no_payload_or_breaks_its_bounds_is_refused",
    ),
)

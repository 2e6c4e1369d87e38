"""Bugs in what a buyer is promised: one answer over any number of nodes, and one bill for it."""

from sim.mutants.mutant import Mutant

_BUYER = "tests/coordinator/buyer"
_ANY_CUT = f"{_BUYER}/test_any_cut.py::test_an_answer_that_is_cut_anywhere_is_the_unbroken_one"
_KEPT = "tests/coordinator/gateway/test_kept.py"
_MATCHING = "tests/coordinator/market/test_matching.py"

PURCHASES = (
    Mutant(
        "the next part may be as long as the whole answer",
        "coordinator/buyer/continuation.py",
        "max_tokens=job_input.max_tokens - count,",
        "max_tokens=job_input.max_tokens,",
        test=_ANY_CUT,
    ),
    Mutant(
        "the next part draws from a seed of its own",
        "coordinator/buyer/continuation.py",
        "seed=derive_seed(first.request_digest) if job_input.seed is None else job_input.seed,",
        "seed=job_input.seed,",
        test=f"{_BUYER}/test_continuation.py::test_it_is_the_same_input_after_what_was_delivered",
    ),
    Mutant(
        "the next part goes on after the tokens of the last one only",
        "coordinator/buyer/purchase.py",
        "self._progress.delivered.add(chunk)\n                self._ready.append(chunk)",
        "self._ready.append(chunk)",
        test=_ANY_CUT,
    ),
    Mutant(
        "an answer that was complete when it broke off is asked for again",
        "coordinator/buyer/purchase.py",
        "if is_refused or is_at_length(",
        "if is_refused and is_at_length(",
        test=f"{_BUYER}/test_purchase.py::test_a_cut_after_the_last_token_needs_no_other_node",
    ),
    Mutant(
        "what earlier parts cost does not count against the cap",
        "coordinator/buyer/continuation.py",
        "cost_max_nano = max(cost_max_nano - spent_nano, 0)",
        "cost_max_nano = max(cost_max_nano, 0)",
        test=f"{_BUYER}/test_purchase.py"
        "::test_all_parts_together_cost_no_more_than_the_request_allows",
    ),
    Mutant(
        "another body under a key gets the first one's answer",
        "coordinator/gateway/http/kept/keeper.py",
        "if found is not None and found.request_digest != purchaser.request_digest:",
        "if False:",
        test=f"{_KEPT}::test_another_body_route_or_routing_under_a_key_is_a_conflict",
    ),
    Mutant(
        "a batch pays the price of a live job",
        "protocol/offers.py",
        "return share_of(self.price, self.batch_percent) if is_batch else self.price",
        "return self.price",
        test=f"{_MATCHING}::test_a_batch_takes_only_a_seat_that_is_idle_and_pays_less",
    ),
    Mutant(
        "a node may take a slot back from a batch as often as it likes",
        "coordinator/buyer/tries.py",
        "if self._yields_without_progress >= YIELDS_MAX:",
        "if False:",
        test=f"{_BUYER}/test_purchase.py"
        "::test_a_node_that_always_takes_its_slot_back_is_paid_for_so_many_prompts_at_most",
    ),
    Mutant(
        "jobs of batches keep live ones out",
        "capanode/seats.py",
        "ahead = len(self._taken) - (0 if is_batch else len(self._batch))",
        "ahead = len(self._taken)",
        test="tests/capanode/test_seats.py::test_jobs_of_batches_keep_no_other_out",
    ),
)

"""Bugs in leases that are taken ahead of their jobs: kept, used, given back, paid."""

from sim.mutants.mutant import Mutant

_POOL = "tests/coordinator/buyer/ahead/test_pool.py"
_GRANTED = "tests/coordinator/leasing/test_leases_ahead.py"

AHEAD = (
    Mutant(
        "a lease that was taken ahead serves two jobs",
        "coordinator/buyer/ahead/pool.py",
        "        stock.remove(lease)\n        self._counts.hits += 1",
        "        self._counts.hits += 1",
        test=f"{_POOL}::test_each_lease_serves_one_job",
    ),
    Mutant(
        "leases that no job came for are not given back",
        "coordinator/buyer/ahead/pool.py",
        "            for lease in stock.take_unwanted(now):\n"
        "                self._give_back(lease, key)\n",
        "            stock.take_unwanted(now)\n",
        test=f"{_POOL}::test_what_is_not_used_is_given_back_at_once_and_listed_nowhere",
    ),
    Mutant(
        "leases ahead may hold all that an account has",
        "coordinator/buyer/ahead/pool.py",
        "(free_nano + held_nano) // MONEY_SHARE - held_nano",
        "free_nano",
        test=f"{_POOL}::test_leases_ahead_hold_a_small_share_of_the_money",
    ),
    Mutant(
        "a lease ahead is opened when it may have lapsed",
        "coordinator/buyer/ahead/stock.py",
        "if now < lease.usable_until and fits(lease)",
        "if fits(lease)",
        test="tests/coordinator/buyer/ahead/test_stock.py"
        "::test_a_lease_that_the_node_may_refuse_as_too_old_is_given_back_and_serves_no_job",
    ),
    Mutant(
        "a lone receipt may bill beyond the binding of its opening",
        "coordinator/settling/verdicts.py",
        "if proof.units_max is not None and not receipt.units.fits_in(proof.units_max):",
        "if False:",
        test="tests/coordinator/settling/test_verdicts.py"
        "::test_a_lone_receipt_beyond_what_its_opening_allows_is_worth_nothing",
    ),
    Mutant(
        "leases ahead keep their seats from the first that has a job",
        "coordinator/leasing/granting.py",
        "if not self._leases.yield_ahead():",
        "if True:",
        test=f"{_GRANTED}::test_leases_ahead_take_idle_seats_only_and_yield_them_at_once",
    ),
    Mutant(
        "a restarted coordinator takes leases ahead for leases of jobs",
        "coordinator/leasing/restoring.py",
        "            is_ahead=row.is_ahead,\n",
        "",
        test=f"{_GRANTED}::test_leases_ahead_yield_their_seats_after_a_restart_too",
    ),
    Mutant(
        "a client may lease ahead as much as it likes",
        "coordinator/leasing/openings.py",
        "if len(self._ahead.get(client, ())) >= min(most, LEASES_AHEAD_MAX):",
        "if False:",
        test=f"{_GRANTED}::test_leases_ahead_are_few_and_keep_no_job_of_their_client_from_a_lease",
    ),
)

"""Bad machines beside honest nodes; `python -m sim bench strangers` has the whole table."""

import pytest

from sim.bench.strangers import toll_of
from sim.vices import Vice

REQUESTS = 120


@pytest.mark.bench
@pytest.mark.parametrize("vice", [Vice.SILENT, Vice.STALLING])
def test_fifty_identities_of_one_machine_cost_no_more_than_a_few_requests(vice: Vice) -> None:
    toll = toll_of(vice, 50, requests=REQUESTS)
    assert toll.answered + toll.lost == REQUESTS
    assert toll.lost + toll.late <= 5, toll
    assert toll.false_ejections == 0
    assert toll.refused_while_idle == 0

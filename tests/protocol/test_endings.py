"""What follows from how a job finished stands in one table."""

import pytest

from protocol.endings import FINISH_RULES, Finish, LeaseState
from protocol.job_state import JobState, state_after_lease


def test_every_finish_has_its_rule() -> None:
    assert set(FINISH_RULES) == set(Finish)


@pytest.mark.parametrize("finish", Finish)
def test_an_answer_is_no_fault_and_has_a_word_for_apis(finish: Finish) -> None:
    rule = FINISH_RULES[finish]
    assert rule.is_answer == (rule.api_reason is not None)
    assert not (rule.is_answer and rule.is_fault)
    assert not (rule.charges_input_alone and not rule.charges_output)


def test_a_job_that_was_answered_is_settled_although_it_cost_nothing() -> None:
    assert state_after_lease(LeaseState.RELEASED, Finish.STOP) is JobState.SETTLED
    assert state_after_lease(LeaseState.RELEASED, Finish.REFUSED) is JobState.REFUSED
    assert state_after_lease(LeaseState.EXPIRED, None) is JobState.EXPIRED
    assert state_after_lease(LeaseState.SETTLED, Finish.FAILED) is JobState.SETTLED

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Code, RemoteProtocolError
from protocol.job_state import TRANSITIONS, JobEvent, JobState, next_state

FINAL_STATES = {JobState.SETTLED, JobState.EXPIRED}


@given(st.lists(st.sampled_from(JobEvent), max_size=20))
def test_no_sequence_of_events_leaves_the_table(events: list[JobEvent]) -> None:
    state = JobState.REQUESTED
    for event in events:
        if (state, event) in TRANSITIONS:
            state = next_state(state, event)
            assert state in JobState
        else:
            with pytest.raises(RemoteProtocolError) as caught:
                next_state(state, event)
            assert caught.value.code is Code.UNEXPECTED_FRAME


def test_final_states_are_left_by_nothing() -> None:
    assert not {state for state, _ in TRANSITIONS} & FINAL_STATES


def test_every_state_can_be_reached_and_every_unfinished_one_can_end() -> None:
    assert {*TRANSITIONS.values(), JobState.REQUESTED} == set(JobState)
    reaching = set(FINAL_STATES)
    while True:
        grown = reaching | {state for (state, _), after in TRANSITIONS.items() if after in reaching}
        if grown == reaching:
            break
        reaching = grown
    assert reaching == set(JobState)


def test_money_is_settled_only_after_a_receipt() -> None:
    assert [s for (s, _), after in TRANSITIONS.items() if after is JobState.SETTLED] == [
        JobState.ENDED
    ]


@pytest.mark.parametrize("event", [JobEvent.OUTPUT, JobEvent.ACCEPT, JobEvent.RECEIPT])
def test_nothing_happens_at_a_node_before_a_lease(event: JobEvent) -> None:
    with pytest.raises(RemoteProtocolError):
        next_state(JobState.REQUESTED, event)

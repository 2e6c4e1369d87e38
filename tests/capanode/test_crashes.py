"""Whose doing a worker's end is: what one model's journal remembers, and for how long."""

import pytest

from capanode.worker import runs
from capanode.worker.allowance import RunTerms
from capanode.worker.crashes import (
    CLIENTS_MAX,
    INPUTS_MAX,
    STRIKES_MAX,
    STRIKES_WITHIN_S,
    CrashJournal,
    Culprit,
    digest_of,
)
from capanode.worker.runs import Runs


def culprit(client: str, payload: bytes = b"poison") -> Culprit:
    return Culprit(client, digest_of(payload))


def test_convicted_input_is_known_again_and_others_are_not() -> None:
    journal = CrashJournal()
    assert not journal.has_met(b"poison")
    assert journal.convict(culprit("alice"), 0.0)
    assert journal.has_met(b"poison")
    assert not journal.has_met(b"other")


def test_nodes_own_job_convicts_the_model() -> None:
    journal = CrashJournal()
    assert not journal.convict(culprit(""), 0.0)
    assert not journal.has_met(b"poison")


def test_third_client_in_a_row_shows_that_the_model_is_broken() -> None:
    journal = CrashJournal()
    verdicts = [journal.convict(culprit(name, name.encode()), 0.0) for name in "abcd"]
    assert verdicts == [True, True, False, False]
    assert not journal.has_met(b"c")


def test_one_client_breaks_no_model_however_often_it_tries() -> None:
    journal = CrashJournal()
    assert all(journal.convict(culprit("alice", bytes([n])), 0.0) for n in range(100))


def test_job_that_ended_well_clears_the_model() -> None:
    journal = CrashJournal()
    for name in "abcdef":
        assert journal.convict(culprit(name, name.encode()), 0.0)
        journal.job_ended_well()


def test_client_is_barred_after_some_strikes_and_not_for_ever() -> None:
    journal = CrashJournal()
    for number in range(STRIKES_MAX):
        assert not journal.is_barred("alice", float(number))
        journal.convict(culprit("alice", bytes([number])), float(number))
    assert journal.is_barred("alice", STRIKES_MAX)
    assert not journal.is_barred("bob", STRIKES_MAX)
    assert journal.is_barred("alice", STRIKES_WITHIN_S)
    assert not journal.is_barred("alice", STRIKES_WITHIN_S + 0.5)


@pytest.mark.parametrize("count", [INPUTS_MAX + 1, 3 * INPUTS_MAX])
def test_memory_is_bounded_and_drops_the_oldest(count: int) -> None:
    journal = CrashJournal()
    for number in range(count):
        journal.job_ended_well()
        journal.convict(culprit(f"client{number}", str(number).encode()), 0.0)
    known = [journal.has_met(str(number).encode()) for number in range(count)]
    assert sum(known) == INPUTS_MAX
    assert all(known[-INPUTS_MAX:])
    for number in range(STRIKES_MAX):
        journal.convict(culprit("client0", bytes([number])), 0.0)
        for other in range(CLIENTS_MAX):
            journal.job_ended_well()
            journal.convict(culprit(f"x{number}-{other}"), 0.0)
    assert not journal.is_barred("client0", 0.0), "its strikes were forgotten between"


def test_an_input_that_is_too_much_to_keep_is_known_again_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms = RunTerms(client="mallory")
    kept = Runs().add("kept", b"poison", lambda event: None, terms)
    monkeypatch.setattr(runs, "KEPT_BYTES_MAX", 0)
    dropped = Runs().add("dropped", b"poison", lambda event: None, terms)
    assert dropped.payload is None
    assert kept.culprit == dropped.culprit == culprit("mallory")

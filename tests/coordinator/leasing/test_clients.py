"""What a client's record entitles it to."""

from coordinator.leasing.clients import (
    ALL_WINDOWS,
    FIRST_STEP_NANO,
    STANDING_MAX,
    STRANGER,
    UNOPENED_MAX_OF_STRANGERS,
    ClientRecord,
    Clients,
)
from protocol.ids import PeerId
from protocol.limits import WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN


def test_a_stranger_gets_the_smallest_window_and_few_unopened_leases() -> None:
    record = Clients().look_up(PeerId("a"))
    assert (record.standing, ALL_WINDOWS.of(record)) == (STRANGER, WINDOW_TOKENS_MIN)
    assert record.unopened_max == UNOPENED_MAX_OF_STRANGERS


def test_what_is_paid_and_signed_for_earns_wider_windows_up_to_the_largest() -> None:
    record = ClientRecord()
    windows = []
    for _ in range(2 * STANDING_MAX):
        record.note_settled(max(record.paid_nano, FIRST_STEP_NANO), is_signed=True)
        windows.append(ALL_WINDOWS.of(record))
    assert windows == sorted(windows)
    assert (windows[-1], record.standing) == (WINDOW_TOKENS_MAX, STANDING_MAX)


def test_free_answers_earn_nothing() -> None:
    record = ClientRecord()
    for _ in range(1_000):
        record.note_settled(0, is_signed=True)
    assert record.standing == STRANGER


def test_one_unsigned_answer_is_no_habit_and_many_are() -> None:
    record = ClientRecord()
    record.note_settled(10, is_signed=False)
    assert record.standing == STRANGER
    for _ in range(9):
        record.note_settled(10, is_signed=False)
    assert (record.standing, record.unopened_max) == (0, 1)


def test_a_bad_record_is_outgrown() -> None:
    record = ClientRecord()
    for _ in range(10):
        record.note_opened(is_opened=False)
    assert record.standing == 0
    for _ in range(100):
        record.note_opened(is_opened=True)
    assert record.standing == STRANGER


def test_the_record_longest_unheard_of_is_forgotten() -> None:
    clients = Clients(clients_max=2)
    for name in "abc":
        clients.keep(PeerId(name)).note_settled(FIRST_STEP_NANO, is_signed=True)
    assert len(clients) == 2
    assert clients.look_up(PeerId("a")).standing == STRANGER
    assert clients.look_up(PeerId("c")).standing > STRANGER


def test_looking_up_a_client_keeps_nothing() -> None:
    clients = Clients()
    clients.look_up(PeerId("a"))
    assert len(clients) == 0

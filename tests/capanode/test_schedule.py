"""Windows of the week in which the owner lends the machine."""

from datetime import UTC, datetime

import pytest

from capanode.schedule import find_zone, is_open, read_windows, read_zone_name

# Monday, 2 November 2026.
MONDAY = datetime(2026, 11, 2, tzinfo=UTC)


def at(day: int, time: str) -> datetime:
    hour, minute = map(int, time.split(":"))
    return MONDAY.replace(day=2 + day, hour=hour, minute=minute)


@pytest.mark.parametrize(
    ("window", "opened", "closed"),
    [
        ("mon-fri 22:00-08:00", [(0, "22:00"), (1, "07:59")], [(0, "07:00"), (0, "08:00")]),
        ("fri 22:00-08:00", [(4, "22:00"), (5, "03:00")], [(5, "23:00"), (4, "03:00")]),
        ("sat,sun", [(5, "00:00"), (6, "23:59")], [(4, "23:59"), (0, "00:00")]),
        ("09:00-17:00", [(3, "09:00"), (6, "16:59")], [(3, "08:59"), (3, "17:00")]),
        ("sun 20:00-24:00", [(6, "23:59")], [(0, "00:00"), (6, "19:59")]),
        ("fri-mon 12:00-13:00", [(4, "12:00"), (0, "12:30")], [(1, "12:30")]),
        ("SAT 0:00-6:00", [(5, "05:59")], [(5, "06:00")]),
    ],
)
def test_a_window_holds_from_its_first_minute_to_before_its_last(
    window: str, opened: list[tuple[int, str]], closed: list[tuple[int, str]]
) -> None:
    windows = read_windows([window])
    assert [str(one) for one in windows] == [window]
    assert all(is_open(windows, at(*when)) for when in opened)
    assert not any(is_open(windows, at(*when)) for when in closed)


def test_several_windows_add_up_and_none_is_always() -> None:
    windows = read_windows("mon 08:00-09:00; sat,sun")
    assert is_open(windows, at(0, "08:30"))
    assert is_open(windows, at(5, "12:00"))
    assert not is_open(windows, at(1, "08:30"))
    assert is_open((), at(1, "08:30"))


@pytest.mark.parametrize(
    "text", ["", "8-9", "mon 8:00", "noday 08:00-09:00", "mon tue", "25:00-26:00", "24:00-08:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="windows such as"):
        read_windows([text])


def test_a_time_zone_is_one_that_the_machine_knows() -> None:
    assert read_zone_name("UTC") == "UTC"
    assert read_zone_name("") == ""
    assert find_zone("") is None
    for text in ("Mars/Olympus", "../etc/passwd", 3):
        with pytest.raises(ValueError, match="time zone"):
            read_zone_name(text)

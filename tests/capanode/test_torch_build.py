import pytest

from capanode.torch_build import CPU, Card, choose_build, parse_cards

SMI = """\
570.133.20, 8.9, NVIDIA GeForce RTX 4090
570.133.20, 8.6, NVIDIA GeForce RTX 3090
"""


def card(driver: str, capability: str, name: str = "a card") -> Card:
    (found,) = parse_cards(f"{driver}, {capability}, {name}")
    return found


def test_what_the_driver_prints_is_read() -> None:
    first, second = parse_cards(SMI)
    assert first == Card("NVIDIA GeForce RTX 4090", "570.133.20", (8, 9))
    assert second.name == "NVIDIA GeForce RTX 3090"


@pytest.mark.parametrize(
    "text",
    ["", "\n", "No devices were found", "N/A, 8.9, a card", "570.1, [N/A], a card", "570.1, 8.9"],
)
def test_what_is_no_card_is_left_out(text: str) -> None:
    assert parse_cards(text) == ()


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        ("580.65.06", "8.9", "cu130"),
        ("590.1", "12.0", "cu130"),
        ("580.65.06", "7.5", "cu130"),
        ("580.65.06", "7.0", "cu126"),  # CUDA 13 has no code for a V100.
        ("570.133.20", "8.9", "cu126"),
        ("525.60.13", "6.1", "cu126"),
    ],
)
def test_the_newest_build_that_runs_is_chosen(driver: str, capability: str, build: str) -> None:
    assert choose_build([card(driver, capability)]).build.name == build


def test_of_several_cards_the_oldest_decides() -> None:
    cards = [card("580.1", "8.9", "RTX 4090"), card("580.1", "6.1", "GTX 1080")]
    choice = choose_build(cards)
    assert choice.build.name == "cu126"
    assert "GTX 1080" in choice.reason


def test_a_machine_that_can_run_no_cuda_build_gets_the_one_for_processors_and_learns_why() -> None:
    assert choose_build([]).build is CPU
    too_old = choose_build([card("470.82.01", "8.6")])
    assert too_old.build is CPU
    assert "470.82.01" in too_old.reason
    assert "update the driver" in too_old.reason
    ancient = choose_build([card("570.1", "3.5", "Tesla K40")])
    assert ancient.build is CPU
    assert "Tesla K40" in ancient.reason

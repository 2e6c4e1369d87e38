"""What a card shall earn in an hour: by a table, unless its owner says otherwise."""

from dataclasses import replace

import pytest

from capanode.hourly_rates import DEFAULT_HOURLY_RATES, card_hour_nano, gpu_hour_nano
from protocol.money import NANO_PER_CREDIT
from protocol.offers import Hardware

GIB = 1024**3


def cents(name: str) -> int | None:
    nano = card_hour_nano(name)
    return None if nano is None else nano * 100 // NANO_PER_CREDIT


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        # What such cards rent for, in hundredths of a credit an hour.
        ("NVIDIA GeForce RTX 3090", 18, 39),
        ("NVIDIA GeForce RTX 4090", 31, 88),
        ("NVIDIA GeForce RTX 5090", 69, 122),
        ("NVIDIA H100 80GB HBM3", 185, 476),
    ],
)
def test_a_card_starts_within_what_such_cards_rent_for(name: str, low: int, high: int) -> None:
    found = cents(name)
    assert found is not None
    assert low <= found <= (low + high) / 2


def test_cards_are_told_apart_by_their_whole_names() -> None:
    assert cents("NVIDIA L40S") != cents("NVIDIA L40")
    assert cents("NVIDIA L4") != cents("NVIDIA L40")
    assert cents("NVIDIA A100-SXM4-80GB") == cents("NVIDIA A100 80GB PCIe")
    assert cents("NVIDIA A10") != cents("NVIDIA A100-PCIE-40GB")
    assert cents("NVIDIA GeForce RTX 3090 Ti") == cents("NVIDIA GeForce RTX 3090")
    assert cents("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert cents("Quadro K2000") is None


def test_the_owner_wins_over_the_table_and_the_card_over_its_memory() -> None:
    pair = Hardware("cuda", "NVIDIA GeForce RTX 3090", 24 * GIB, 2)
    by_table = gpu_hour_nano(pair, DEFAULT_HOURLY_RATES)
    assert by_table == 2 * 240_000_000
    by_gib = replace(DEFAULT_HOURLY_RATES, gpu_gib_hour_nano=1_000_000)
    assert gpu_hour_nano(pair, by_gib) == 48_000_000
    assert gpu_hour_nano(pair, replace(by_gib, gpu_hour_nano=5)) == 10


def test_a_card_that_is_not_known_earns_by_its_memory() -> None:
    other = Hardware("cuda", "NVIDIA of tomorrow", 10 * GIB, 1)
    assert gpu_hour_nano(other, DEFAULT_HOURLY_RATES) == 100_000_000

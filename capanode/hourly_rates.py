"""The hourly rates that a node's prices come from; `pricing_policy` turns them into prices.

A card's rate is what such cards rent for by the hour, not what its memory would cost elsewhere:
24 GiB of a 3090 earn half of what 24 GiB of a 4090 earn.
"""

import re
from dataclasses import dataclass

from protocol.money import NANO_PER_CREDIT, divide_up
from protocol.offers import Hardware

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class HourlyRates:
    """Target revenue of an hour of busy hardware, in nano-credits. Where the owner says nothing of
    GPUs, the table of cards does; a rate of the whole card wins over one of its memory."""

    cpu_core_hour_nano: int
    gpu_gib_hour_nano: int | None = None
    gpu_hour_nano: int | None = None


# A core rents for 2–4 cents an hour.
DEFAULT_HOURLY_RATES = HourlyRates(cpu_core_hour_nano=20_000_000)

# Of cards that the table does not know, and of parts of cards (MIG).
_OTHER_GIB_HOUR_NANO = 10_000_000

# Hundredths of a credit. The ranges are asking prices of autumn 2026; a new node starts below their
# middle. The others are set beside those four by memory bandwidth, which bounds decode.
_CARD_HOUR_CENTS = {
    "H200": 280,
    "H100": 220,  # 185–476
    "A100": 110,
    "RTX 6000 Ada": 60,
    "RTX A6000": 40,
    "L40S": 60,
    "L40": 50,
    "A40": 35,
    "A10": 25,
    "L4": 18,
    "T4": 12,
    "RTX 5090": 80,  # 69–122
    "RTX 5080": 45,
    "RTX 4090": 45,  # 31–88
    "RTX 4080": 32,
    "RTX 4070": 20,
    "RTX 3090": 24,  # 18–39
    "RTX 3080": 18,
    "RTX 3060": 8,
}


def gpu_hour_nano(hardware: Hardware, rates: HourlyRates) -> int:
    """What all cards of this hardware together shall earn in a busy hour."""
    if rates.gpu_hour_nano is not None:
        return rates.gpu_hour_nano * hardware.count
    by_gib = rates.gpu_gib_hour_nano
    card = card_hour_nano(hardware.name)
    if by_gib is None and card is not None:
        return card * hardware.count
    rate = _OTHER_GIB_HOUR_NANO if by_gib is None else by_gib
    return divide_up(hardware.memory_bytes * hardware.count * rate, _GIB)


def card_hour_nano(name: str) -> int | None:
    """By the driver's name of a card, such as `NVIDIA GeForce RTX 3090`; None if it is not known,
    or only a part of one."""
    if "MIG" in name:
        return None
    for card, cents in _CARD_HOUR_CENTS.items():
        # A letter or digit behind it makes another card: L4 is not L40.
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(card)}(?![A-Za-z0-9])", name):
            return cents * NANO_PER_CREDIT // 100
    return None

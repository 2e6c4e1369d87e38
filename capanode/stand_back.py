"""When a node stands back for what else happens on its machine: pure rules with a memory.

Each is told what was seen, one look after another, and answers whether the node should be paused.
It comes back later than it went, so that a build of a minute does not make it come and go.
"""

from dataclasses import dataclass

from capanode.machine_use import MachineUse

# What other programs may take before the owner counts as back. A desktop that draws its windows
# takes a few percent of a card.
PROCESSOR_SHARE = 0.5
GPU_SHARE = 0.15
# Looks in a row until the node goes, and until it is back: at five seconds each, 15 s and 60 s.
BUSY_LOOKS = 3
CALM_LOOKS = 12
# A card that was too hot has cooled down when it is so much below.
COOLER_BY_CELSIUS = 10


@dataclass(slots=True)
class YieldRule:
    """Other programs use the machine. For nodes with a GPU both count: jobs need it, and a
    processor to feed it."""

    is_away: bool = False
    looks: int = 0

    def look(self, use: MachineUse) -> bool:
        is_busy = use.processor_share >= PROCESSOR_SHARE or use.gpu_share >= GPU_SHARE
        self.looks = self.looks + 1 if is_busy is not self.is_away else 0
        if self.looks >= (CALM_LOOKS if self.is_away else BUSY_LOOKS):
            self.is_away, self.looks = not self.is_away, 0
        return self.is_away


@dataclass(slots=True)
class HeatRule:
    """A card that is hotter than its owner allows gets no new jobs until it has cooled down."""

    is_away: bool = False

    def look(self, celsius: int | None, *, most_celsius: int) -> bool:
        """`most_celsius` 0 switches it off."""
        if celsius is None or not most_celsius:
            self.is_away = False
        elif celsius >= most_celsius:
            self.is_away = True
        elif celsius <= most_celsius - COOLER_BY_CELSIUS:
            self.is_away = False
        return self.is_away

"""Which build of torch this machine can run: PyPI has one, for the newest CUDA, and it takes
gigabytes to find out that the driver is older.

A build for CUDA N runs on every driver of N's major release (NVIDIA, "CUDA Compatibility", table
1), and CUDA 13 has no code for cards before compute capability 7.5. `nvidia-smi` comes with the
driver, so that asking it takes no package of ours.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_ASK_WITHIN_S = 20.0
_QUERY = ("--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader")

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """`driver_min` and `capability_min` are () where no card is needed."""

    name: str
    index: str
    download_gb: float
    driver_min: Version = ()
    capability_min: Version = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU and its driver as `nvidia-smi` names them."""

    name: str
    driver: str
    capability: Version

    @property
    def driver_version(self) -> Version:
        return _version(self.driver)


@dataclass(frozen=True, slots=True)
class TorchChoice:
    """A build, and why it is the one in words."""

    build: TorchBuild
    reason: str


_INDEX = "https://download.pytorch.org/whl"
CPU = TorchBuild("cpu", f"{_INDEX}/cpu", 0.2)
# The newest first. Downloads include the CUDA libraries that torch asks for.
CUDA_BUILDS = (
    TorchBuild("cu130", f"{_INDEX}/cu130", 2.5, driver_min=(580,), capability_min=(7, 5)),
    TorchBuild("cu126", f"{_INDEX}/cu126", 3.0, driver_min=(525,), capability_min=(5, 0)),
)


def find_cards() -> tuple[Card, ...]:
    """The NVIDIA GPUs of this machine; () where there is no driver, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(  # noqa: S603  # found on our own PATH, with constant arguments
            (program, *_QUERY), capture_output=True, text=True, timeout=_ASK_WITHIN_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_cards(done.stdout)


def parse_cards(text: str) -> tuple[Card, ...]:
    """Lines such as `580.95.05, 8.9, NVIDIA GeForce RTX 4090`; a line of another form is none."""
    cards = []
    for line in text.splitlines():
        driver, _, rest = line.partition(",")
        capability, _, name = rest.partition(",")
        card = Card(name.strip(), driver.strip(), _version(capability))
        if card.name and card.driver_version and card.capability:
            cards.append(card)
    return tuple(cards)


def choose_build(cards: Sequence[Card]) -> TorchChoice:
    """The newest build that the driver can run and that has code for every card."""
    if not cards:
        return TorchChoice(CPU, "no NVIDIA GPU answers here, so models will run on the processor")
    version, driver = cards[0].driver_version, cards[0].driver  # one for all cards
    oldest = min(cards, key=lambda card: card.capability)
    for build in CUDA_BUILDS:
        if version >= build.driver_min and oldest.capability >= build.capability_min:
            return TorchChoice(
                build, f"driver {driver} and {oldest.name} can run CUDA {_cuda(build)}"
            )
    last = CUDA_BUILDS[-1]
    if version < last.driver_min:
        reason = (
            f"driver {driver} is older than {last.driver_min[0]}, the oldest that a build of torch "
            "for CUDA runs on: update the driver, then do this again"
        )
    else:
        reason = f"{oldest.name} is older than all that today's torch has code for"
    return TorchChoice(CPU, f"{reason}; until then models run on the processor")


def _version(text: str) -> Version:
    parts = text.strip().split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _cuda(build: TorchBuild) -> str:
    digits = build.name.removeprefix("cu")
    return f"{digits[:-1]}.{digits[-1]}"

"""What a job used (Units), what a node asks for it (PriceSheet), and the one charge they make."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from protocol.limits import TENSOR_ELEMENTS_MAX, TOKENS_MAX
from protocol.money import AMOUNT_NANO_MAX, divide_up

TOKENS_PER_PRICE = 1_000_000
PERCENT = 100
ELEMENTS_PER_PRICE = 1_000

# A thousand credits for one image or a million tokens: any dearer is a typing mistake.
PRICE_NANO_MAX = 1_000 * 1_000_000_000

# One request carries one image today; batches of images may come.
IMAGES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Units:
    """What is metered. Tokens are the model's own; an image is one image, whatever its size.
    Elements of tensors are those of the input: see `protocol.tensors.TensorInput.elements`."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    tensor_elements: int = 0

    def __post_init__(self) -> None:
        if not (
            0 <= self.input_tokens <= TOKENS_MAX
            and 0 <= self.output_tokens <= TOKENS_MAX
            and 0 <= self.images <= IMAGES_MAX
            and 0 <= self.tensor_elements <= TENSOR_ELEMENTS_MAX
        ):
            raise ValueError("units are out of range")

    def fits_in(self, limit: "Units") -> bool:
        return all(getattr(self, unit) <= getattr(limit, unit) for unit in UNIT_NAMES)


# The units in the order in which they are listed everywhere.
UNIT_NAMES = tuple(field.name for field in fields(Units))


@dataclass(frozen=True, slots=True)
class PriceSheet:
    """Prices in nano-credits: per million tokens in and out, per image, per request, per thousand
    elements of tensors."""

    input_nano_per_mtok: int = 0
    output_nano_per_mtok: int = 0
    image_nano: int = 0
    request_nano: int = 0
    tensor_nano_per_kelement: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= position.of(self) <= PRICE_NANO_MAX for position in PRICE_POSITIONS):
            raise ValueError("a price is out of range")


class PricePosition(NamedTuple):
    """One line of a price sheet: `field` of a PriceSheet asks for `per` of `unit`."""

    # What settings and `/v1/models` call it.
    name: str
    # How commands say it to people, behind the amount.
    label: str
    field: str
    # The field of `messages.PriceCap` that bounds it, and what HTTP clients call that bound.
    cap_field: str
    cap_name: str
    # The field of Units that it multiplies; None is once per job.
    unit: str | None
    per: int = 1

    def of(self, sheet: PriceSheet) -> int:
        """What the sheet asks here, in nano-credits."""
        nano: int = getattr(sheet, self.field)
        return nano

    def count(self, units: Units) -> int:
        """How often a job of these units pays it, in units of `per`."""
        return 1 if self.unit is None else getattr(units, self.unit)


# Every price that there is, in the order in which it is listed everywhere.
PRICE_POSITIONS = (
    PricePosition(
        name="input_per_mtok",
        label="per M in",
        field="input_nano_per_mtok",
        cap_field="prompt_nano_per_mtok",
        cap_name="prompt",
        unit="input_tokens",
        per=TOKENS_PER_PRICE,
    ),
    PricePosition(
        name="output_per_mtok",
        label="per M out",
        field="output_nano_per_mtok",
        cap_field="completion_nano_per_mtok",
        cap_name="completion",
        unit="output_tokens",
        per=TOKENS_PER_PRICE,
    ),
    PricePosition(
        name="image",
        label="per image",
        field="image_nano",
        cap_field="image_nano",
        cap_name="image",
        unit="images",
    ),
    PricePosition(
        name="request",
        label="per request",
        field="request_nano",
        cap_field="request_nano",
        cap_name="request",
        unit=None,
    ),
    PricePosition(
        name="tensor_per_kelement",
        label="per 1k elements",
        field="tensor_nano_per_kelement",
        cap_field="tensor_nano_per_kelement",
        cap_name="tensor",
        unit="tensor_elements",
        per=ELEMENTS_PER_PRICE,
    ),
)


def share_of(sheet: PriceSheet, percent: int) -> PriceSheet:
    """So much of every price, each rounded up."""
    prices = {p.field: divide_up(p.of(sheet) * percent, PERCENT) for p in PRICE_POSITIONS}
    return PriceSheet(**prices)


def prices_of(sheet: PriceSheet) -> dict[str, int]:
    """All of a sheet in nano-credits, by the names of the positions."""
    return {position.name: position.of(sheet) for position in PRICE_POSITIONS}


def cost_nano(sheet: PriceSheet, units: Units) -> int:
    """The charge for one job, rounded up once. Raises ValueError above what a ledger can hold."""
    # In parts of a nano-credit, so that the sum of all positions is rounded and no single one.
    parts = 0
    for price, unit, weight in _TERMS:
        nano = getattr(sheet, price)
        if nano:
            parts += nano * weight * (1 if unit is None else getattr(units, unit))
    amount_nano = divide_up(parts, _PARTS_PER_NANO)
    if amount_nano > AMOUNT_NANO_MAX:
        raise ValueError("the charge is more than the ledger can hold")
    return amount_nano


_PARTS_PER_NANO = math.lcm(*(position.per for position in PRICE_POSITIONS))
# Each position's field, its unit, and how many parts one nano-credit for one unit is. A job is
# priced five times.
_TERMS = [(p.field, p.unit, _PARTS_PER_NANO // p.per) for p in PRICE_POSITIONS]

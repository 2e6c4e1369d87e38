"""What a job used (Units), what a node asks for it (PriceSheet), and the one charge they make."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from protocol.codec import added
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
    Elements of tensors are those of the input: see `protocol.tensors.TensorInput.elements`.
    `cached_tokens` are those of the input tokens that the node had computed for an earlier job and
    asks less for."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    tensor_elements: int = 0
    cached_tokens: int = added(0)

    def __post_init__(self) -> None:
        if not (
            0 <= self.input_tokens <= TOKENS_MAX
            and 0 <= self.output_tokens <= TOKENS_MAX
            and 0 <= self.images <= IMAGES_MAX
            and 0 <= self.tensor_elements <= TENSOR_ELEMENTS_MAX
            and 0 <= self.cached_tokens <= self.input_tokens
        ):
            raise ValueError("units are out of range")

    def fits_in(self, limit: "Units") -> bool:
        """Cached tokens need no limit of their own: they are input tokens, for a lower price."""
        return all(getattr(self, unit) <= getattr(limit, unit) for unit in UNIT_NAMES)


_CACHED = "cached_tokens"
# The units in the order in which they are listed everywhere, without the one that is part of
# another.
UNIT_NAMES = tuple(field.name for field in fields(Units) if field.name != _CACHED)


@dataclass(frozen=True, slots=True)
class PriceSheet:
    """Prices in nano-credits: per million tokens in and out, per image, per request, per thousand
    elements of tensors, and per million cached tokens in; None of those asks the price of input."""

    input_nano_per_mtok: int = 0
    output_nano_per_mtok: int = 0
    image_nano: int = 0
    request_nano: int = 0
    tensor_nano_per_kelement: int = 0
    cached_nano_per_mtok: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= position.of(self) <= PRICE_NANO_MAX for position in PRICE_POSITIONS):
            raise ValueError("a price is out of range")
        # A client cannot see whether tokens were cached: a node that says so must not gain by it.
        if self.asked_for_cached_nano > self.input_nano_per_mtok:
            raise ValueError("cached input is dearer than other input")

    @property
    def asked_for_cached_nano(self) -> int:
        """Per million tokens."""
        price = self.cached_nano_per_mtok
        return self.input_nano_per_mtok if price is None else price

    @property
    def without_cached(self) -> "PriceSheet":
        """For those who do not know of cached tokens."""
        return replace(self, cached_nano_per_mtok=None)


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

    @property
    def base_unit(self) -> str | None:
        """The one of UNIT_NAMES that it counts, or counts part of."""
        return "input_tokens" if self.unit == _CACHED else self.unit

    def of(self, sheet: PriceSheet) -> int:
        """What the sheet asks here, in nano-credits."""
        if self.unit == _CACHED:
            return sheet.asked_for_cached_nano
        nano: int = getattr(sheet, self.field)
        return nano

    def count(self, units: Units) -> int:
        """How often a job of these units pays it, in units of `per`."""
        if self.unit == "input_tokens":
            return units.input_tokens - units.cached_tokens
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
    PricePosition(
        name="cached_input_per_mtok",
        label="per M cached",
        field="cached_nano_per_mtok",
        cap_field="cached_nano_per_mtok",
        cap_name="input_cache_read",
        unit=_CACHED,
        per=TOKENS_PER_PRICE,
    ),
)


def share_of(sheet: PriceSheet, percent: int) -> PriceSheet:
    """So much of every price, each rounded up."""
    return with_each(sheet, lambda nano: divide_up(nano * percent, PERCENT))


def with_each(sheet: PriceSheet, change: Callable[[int], int]) -> PriceSheet:
    """A sheet whose prices are changed alike; a price that it leaves out stays out. `change` makes
    no smaller price the greater one."""
    changed = PriceSheet(**{p.field: change(p.of(sheet)) for p in PRICE_POSITIONS})
    return changed.without_cached if sheet.cached_nano_per_mtok is None else changed


def sheet_of(prices_nano: Iterable[int]) -> PriceSheet:
    """A sheet from prices in the order of the positions. One for cached input that only repeats
    that of input is left out."""
    sheet = PriceSheet(*prices_nano)
    repeats = sheet.cached_nano_per_mtok == sheet.input_nano_per_mtok
    return sheet.without_cached if repeats else sheet


def asked_prices(sheet: PriceSheet) -> Iterator[tuple[PricePosition, int]]:
    """What a sheet asks for, without what is free and a price that only repeats that of input."""
    for position in PRICE_POSITIONS:
        nano = position.of(sheet)
        repeats = position.unit == _CACHED and nano == sheet.input_nano_per_mtok
        if nano and not repeats:
            yield position, nano


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
    if units.cached_tokens:
        less_nano = sheet.input_nano_per_mtok - sheet.asked_for_cached_nano
        parts -= less_nano * (_PARTS_PER_NANO // TOKENS_PER_PRICE) * units.cached_tokens
    amount_nano = divide_up(parts, _PARTS_PER_NANO)
    if amount_nano > AMOUNT_NANO_MAX:
        raise ValueError("the charge is more than the ledger can hold")
    return amount_nano


_PARTS_PER_NANO = math.lcm(*(position.per for position in PRICE_POSITIONS))
# Each position's field, its unit, and how many parts one nano-credit for one unit is. A job is
# priced five times.
_TERMS = [(p.field, p.unit, _PARTS_PER_NANO // p.per) for p in PRICE_POSITIONS if p.unit != _CACHED]

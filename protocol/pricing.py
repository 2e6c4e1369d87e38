"""What a job used (Units), what a node asks for it (PriceSheet), and the one charge they make."""

from dataclasses import dataclass

from protocol.limits import TOKENS_MAX
from protocol.money import AMOUNT_NANO_MAX, divide_up

TOKENS_PER_PRICE = 1_000_000

# A thousand credits for one image or a million tokens: any dearer is a typing mistake.
PRICE_NANO_MAX = 1_000 * 1_000_000_000

# One request carries one image today; batches of images may come.
IMAGES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Units:
    """What is metered. Tokens are the model's own; an image is one image, whatever its size."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        if not (
            0 <= self.input_tokens <= TOKENS_MAX
            and 0 <= self.output_tokens <= TOKENS_MAX
            and 0 <= self.images <= IMAGES_MAX
        ):
            raise ValueError("units are out of range")

    def fits_in(self, limit: "Units") -> bool:
        return (
            self.input_tokens <= limit.input_tokens
            and self.output_tokens <= limit.output_tokens
            and self.images <= limit.images
        )


@dataclass(frozen=True, slots=True)
class PriceSheet:
    """Prices in nano-credits: per million tokens in and out, per image, per request."""

    input_nano_per_mtok: int = 0
    output_nano_per_mtok: int = 0
    image_nano: int = 0
    request_nano: int = 0

    def __post_init__(self) -> None:
        prices = (
            self.input_nano_per_mtok,
            self.output_nano_per_mtok,
            self.image_nano,
            self.request_nano,
        )
        if not all(0 <= price <= PRICE_NANO_MAX for price in prices):
            raise ValueError("a price is out of range")

    def is_at_most(self, other: "PriceSheet") -> bool:
        """True if no position is dearer than in `other`."""
        return (
            self.input_nano_per_mtok <= other.input_nano_per_mtok
            and self.output_nano_per_mtok <= other.output_nano_per_mtok
            and self.image_nano <= other.image_nano
            and self.request_nano <= other.request_nano
        )


def cost_nano(sheet: PriceSheet, units: Units) -> int:
    """The charge for one job, rounded up once. Raises ValueError above what a ledger can hold."""
    per_token = (
        units.input_tokens * sheet.input_nano_per_mtok
        + units.output_tokens * sheet.output_nano_per_mtok
    )
    amount_nano = (
        divide_up(per_token, TOKENS_PER_PRICE)
        + units.images * sheet.image_nano
        + sheet.request_nano
    )
    if amount_nano > AMOUNT_NANO_MAX:
        raise ValueError("the charge is more than the ledger can hold")
    return amount_nano

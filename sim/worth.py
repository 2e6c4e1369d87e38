"""What a receipt is worth by what was signed: the auditor's arithmetic, without the coordinator."""

from dataclasses import replace

from protocol.countersigning import JobOpening
from protocol.endings import Finish
from protocol.envelope import open_envelope
from protocol.messages import Lease, Receipt
from protocol.pricing import PriceSheet, Units

_PER_MTOK = 1_000_000
_PER_KELEMENT = 1_000
# Of a client's hash chains; see docs/protocol.md.
_LINKS_MAX = 4_096
_INPUT_STEPS = 64


def charge_nano(price: PriceSheet, units: Units) -> int:
    """The price of units, rounded up once; no units, no price per request either."""
    if units == Units():
        return 0
    parts = (
        price.input_nano_per_mtok * units.input_tokens
        + price.output_nano_per_mtok * units.output_tokens
        + price.tensor_nano_per_kelement * units.tensor_elements * (_PER_MTOK // _PER_KELEMENT)
    )
    whole, rest = divmod(parts, _PER_MTOK)
    return whole + bool(rest) + price.image_nano * units.images + price.request_nano


def word_nano(billed: Receipt, granted: Lease, counted: Units) -> int:
    """Of a receipt whose client has signed what it got: that, and no less than its links say."""
    links, window = billed.countersigned, _window(granted)
    if links is not None:
        step = max(window, -(-granted.units_max.input_tokens // _INPUT_STEPS))
        least_input, least_output = (links.input_index - 1) * step + 1, (links.index - 1) * window
        counted = replace(
            counted,
            input_tokens=max(counted.input_tokens, min(billed.units.input_tokens, least_input)),
            output_tokens=max(counted.output_tokens, min(billed.units.output_tokens, least_output)),
        )
    if not counted.output_tokens:
        is_free = billed.finish is Finish.FAILED
        most_nano = 0 if is_free else lone_nano(billed, granted)
        return min(most_nano, charge_nano(granted.price, counted))
    return min(billed.amount_nano, charge_nano(granted.price, counted))


def _window(granted: Lease) -> int:
    return max(granted.window_tokens, -(-granted.units_max.output_tokens // (_LINKS_MAX - 1)))


def exceeds_binding(billed: Receipt) -> bool:
    """Whether it bills more than its client allowed for the payload that the opening names; one
    whose request names the payload allows what was leased."""
    if not billed.opening:
        return False
    binding = open_envelope(billed.opening, JobOpening).message.binding
    return binding is not None and not billed.units.fits_in(binding.units_max)


def lone_nano(billed: Receipt, granted: Lease) -> int:
    """Of a receipt without an acceptance: what the client's links say, and a window more. Nothing,
    if its node has billed beyond the binding."""
    most = granted.units_max
    if not billed.opening or exceeds_binding(billed):
        return 0
    if not most.output_tokens:
        return billed.amount_nano
    window = _window(granted)
    tail, price, links = window if granted.pays_tails else 0, granted.price, billed.countersigned
    if links is None:
        price = replace(price, request_nano=0)
        signed_input, output_most = tail, max(tail - billed.units.input_tokens, 0)
    else:
        step = max(window, -(-most.input_tokens // _INPUT_STEPS))
        signed_input, output_most = links.input_index * step, (links.index - 1) * window + tail
    payable = replace(
        billed.units,
        input_tokens=min(billed.units.input_tokens, signed_input),
        output_tokens=min(billed.units.output_tokens, output_most),
    )
    if billed.finish is Finish.FAILED and not payable.output_tokens:
        return 0  # A failure before the first output is free, and no more is proven.
    return min(billed.amount_nano, charge_nano(price, payable))

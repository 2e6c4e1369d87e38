"""What to ask for a model if the operator does not say: the price at which busy hardware earns what
an hour of it shall earn.

    hourly   = CPU: cores used x price_cpu_core_hour;  GPU: GiB of all cards x price_gpu_gib_hour
    per unit = hourly / (3600 s x units per second x utilisation)

Input is priced by the measured prefill speed and output by the decode speed with several streams at
once, because a busy node batches. A node is not busy all day: `UTILISATION` says how much of it is
expected to be paid for. What the operator configures always wins.
"""

from dataclasses import dataclass

from protocol.messages import Hardware, Task
from protocol.money import divide_up
from protocol.pricing import PRICE_NANO_MAX, PriceSheet

# Half of the day sold is what GPU marketplaces report for well-priced cards.
UTILISATION = 0.5

_SECONDS_PER_HOUR = 3_600
_TOKENS_PER_PRICE = 1_000_000
_GIB = 1024**3

# Two digits say all that a benchmark of a second knows, and read better on a price list.
_SIGNIFICANT_DIGITS = 2


@dataclass(frozen=True, slots=True)
class Speed:
    """What the start-up benchmark measured, per second: input tokens of one job, output tokens (or
    images) of one job, and of several jobs at once."""

    prefill_tps: int
    decode_tps: int
    batched_tps: int


@dataclass(frozen=True, slots=True)
class Wages:
    """What an hour of busy hardware shall earn, in nano-credits."""

    cpu_core_hour_nano: int
    gpu_gib_hour_nano: int


# A core rents for 2–4 cents an hour, a GiB of GPU memory for 1–3: an 80 GiB card asks for 1.60.
DEFAULT_WAGES = Wages(cpu_core_hour_nano=20_000_000, gpu_gib_hour_nano=20_000_000)


def propose_price(task: Task, speed: Speed, *, hourly_nano: int) -> PriceSheet:
    """A price sheet for one model that may use all of what earns `hourly_nano`."""
    if task is Task.IMAGE_CLASSIFICATION:
        return PriceSheet(image_nano=_per_units(1, speed.batched_tps, hourly_nano))
    input_nano = _per_units(_TOKENS_PER_PRICE, speed.prefill_tps, hourly_nano)
    if task is Task.EMBEDDING:
        return PriceSheet(input_nano_per_mtok=input_nano)
    output_nano = _per_units(_TOKENS_PER_PRICE, speed.batched_tps, hourly_nano)
    return PriceSheet(input_nano_per_mtok=input_nano, output_nano_per_mtok=output_nano)


def hourly_nano(hardware: Hardware, wages: Wages, *, threads: int) -> int:
    """What the hardware of one model shall earn in a busy hour."""
    if hardware.kind == "cpu":
        return threads * wages.cpu_core_hour_nano
    return divide_up(hardware.memory_bytes * hardware.count * wages.gpu_gib_hour_nano, _GIB)


def _per_units(units: int, units_per_s: int, hourly_nano: int) -> int:
    """The price of `units`, at most what a price may be; at least one nano unless work is free."""
    sold_per_hour = max(1, int(_SECONDS_PER_HOUR * UTILISATION * units_per_s))
    return min(_round_up(divide_up(hourly_nano * units, sold_per_hour)), PRICE_NANO_MAX)


def _round_up(nano: int) -> int:
    """To two significant digits, upwards: 1234 is 1300."""
    step = int(10 ** max(0, len(str(nano)) - _SIGNIFICANT_DIGITS))
    return divide_up(nano, step) * step

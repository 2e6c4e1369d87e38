"""What to ask for a model if the operator does not say: the price at which busy hardware earns what
an hour of it shall earn.

    hourly   = CPU: cores used x price_cpu_core_hour;  GPU: cards x their rate (`hourly_rates`)
    per unit = hourly / (3600 s x units per second x utilisation)

Which speed prices which position is in `capanode.tasks`. A node is not busy all day: `UTILISATION`
says how much of it is expected to be paid for. What the operator configures always wins.
"""

from dataclasses import replace

from capanode.hourly_rates import HourlyRates, gpu_hour_nano
from capanode.measurements import Speed
from capanode.tasks import NODE_TASKS
from protocol.messages import Task
from protocol.money import divide_up
from protocol.offers import Hardware
from protocol.pricing import PERCENT, PRICE_NANO_MAX, PRICE_POSITIONS, PriceSheet
from protocol.tasks import TASKS

# Half of the day sold is what GPU marketplaces report for well-priced cards.
UTILISATION = 0.5

# Of the price of input. Copying what was computed takes a hundredth of the time, but memory
# in between; the field asks a tenth.
_CACHED_PERCENT = 10

_SECONDS_PER_HOUR = 3_600

# Two digits say all that a benchmark of a second knows, and read better on a price list.
_SIGNIFICANT_DIGITS = 2


def propose_price(task: Task, speed: Speed, *, hourly_nano: int) -> PriceSheet:
    """A price sheet for one model that may use all of what earns `hourly_nano`."""
    speeds = NODE_TASKS[task].earned_by
    sheet = PriceSheet(
        **{
            position.field: _per_units(
                position.per, getattr(speed, speeds[position.name]), hourly_nano
            )
            for position in PRICE_POSITIONS
            if position.name in speeds
        }
    )
    if not TASKS[task].reuses_input:
        return sheet
    cached_nano = _round_up(divide_up(sheet.input_nano_per_mtok * _CACHED_PERCENT, PERCENT))
    return replace(sheet, cached_nano_per_mtok=min(cached_nano, sheet.input_nano_per_mtok))


def hourly_nano(hardware: Hardware, rates: HourlyRates, *, threads: int) -> int:
    """What the hardware of one model shall earn in a busy hour."""
    if hardware.kind == "cpu":
        return threads * rates.cpu_core_hour_nano
    return gpu_hour_nano(hardware, rates)


def _per_units(units: int, units_per_s: int, hourly_nano: int) -> int:
    """The price of `units`, at most what a price may be; at least one nano unless work is free."""
    sold_per_hour = max(1, int(_SECONDS_PER_HOUR * UTILISATION * units_per_s))
    return min(_round_up(divide_up(hourly_nano * units, sold_per_hour)), PRICE_NANO_MAX)


def _round_up(nano: int) -> int:
    """To two significant digits, upwards: 1234 is 1300."""
    step = int(10 ** max(0, len(str(nano)) - _SIGNIFICANT_DIGITS))
    return divide_up(nano, step) * step

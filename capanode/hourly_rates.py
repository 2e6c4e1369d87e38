"""The hourly rates that a node's prices come from; `pricing_policy` turns them into prices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HourlyRates:
    """Target revenue of an hour of busy hardware, in nano-credits."""

    cpu_core_hour_nano: int
    gpu_gib_hour_nano: int


# A core rents for 2–4 cents an hour, a GiB of GPU memory for 1–3: an 80 GiB card asks for 1.60.
DEFAULT_HOURLY_RATES = HourlyRates(cpu_core_hour_nano=20_000_000, gpu_gib_hour_nano=20_000_000)

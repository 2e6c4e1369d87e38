"""The hourly rates that a node's prices come from; `pricing_policy` turns them into prices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wages:
    """What an hour of busy hardware shall earn, in nano-credits."""

    cpu_core_hour_nano: int
    gpu_gib_hour_nano: int


# A core rents for 2–4 cents an hour, a GiB of GPU memory for 1–3: an 80 GiB card asks for 1.60.
DEFAULT_WAGES = Wages(cpu_core_hour_nano=20_000_000, gpu_gib_hour_nano=20_000_000)

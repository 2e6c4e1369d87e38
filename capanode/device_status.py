"""What runs on which device of this machine, for `capanode status`."""

from collections.abc import Sequence
from dataclasses import dataclass

from capanode.workers import ModelPlan
from protocol.offers import Hardware

PROCESSOR = "processor"


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One card, by its UUID, or the processor. `promised_bytes` are those of the workers that have
    a place on it; on the processor it is the size of their models."""

    device: str
    name: str
    memory_bytes: int
    promised_bytes: int
    models: tuple[str, ...]


def devices_of(plans: Sequence[ModelPlan], hardware: Hardware) -> tuple[DeviceStatus, ...]:
    """`hardware` is the machine's, for what runs on its processor."""
    devices: dict[str, DeviceStatus] = {}
    for plan in plans:
        own = plan.hardware or hardware
        size = plan.bytes if plan.promise is None else plan.promise.bytes
        for device in [gpu.device.uuid for gpu in plan.gpus] or [PROCESSOR]:
            known = devices.get(device, DeviceStatus(device, own.name, own.memory_bytes, 0, ()))
            devices[device] = DeviceStatus(
                device,
                known.name,
                known.memory_bytes,
                known.promised_bytes + size,
                (*known.models, plan.name),
            )
    return tuple(devices.values())

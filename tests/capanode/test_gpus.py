from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from capanode.device_problems import DeviceProblem
from capanode.gpus import Gpu, GpuReport, chosen_gpus, read_nvml
from capanode.sandbox.gpu import GpuDevice

GIB = 1024**3


class FakeDriver:
    """The NVML calls that we make; `failing` names the one that does not work. Handles are numbers,
    of MIG instances tuples. Cards come in an order that is not the bus's."""

    def __init__(
        self, count: int = 2, failing: str = "", error: int = 4, mig: bool = False
    ) -> None:
        self.count = count
        self.failing = failing
        self.error = error
        self.mig = mig
        self.is_open = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = {
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                total=16 * GIB, free=15 * GIB
            ),
            "nvmlDeviceGetName": lambda handle: "Tesla T4",
            "nvmlDeviceGetUUID": self._uuid,
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(
                busId=f"00000000:{0x65 - 0x10 * handle:02X}:00.0".encode()
            ),
            "nvmlDeviceGetMinorNumber": lambda handle: handle,
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (7, 5),
            "nvmlDeviceGetMigMode": self._mig_mode,
            "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 3,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._instance,
            "nvmlDeviceGetGpuInstanceId": lambda handle: 10 + handle[1],
            "nvmlDeviceGetComputeInstanceId": lambda handle: 0,
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlSystemGetCudaDriverVersion": lambda: 13_010,
            "nvmlInit": lambda: setattr(self, "is_open", True),
            "nvmlShutdown": lambda: setattr(self, "is_open", False),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self._fail if name == self.failing else answer)

    def _uuid(self, handle: int | tuple[int, int]) -> str:
        return f"GPU-{handle}" if isinstance(handle, int) else f"MIG-{handle[0]}-{handle[1]}"

    def _mig_mode(self, handle: int) -> tuple[int, int]:
        if not self.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return (1, 1) if handle == 0 else (0, 0)

    def _instance(self, handle: int, number: int) -> tuple[int, int]:
        if number == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle, number

    def _fail(self, *arguments: object) -> None:
        raise pynvml.NVMLError(self.error)


def test_gpus_come_in_the_order_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    driver.install(monkeypatch)
    report = read_nvml()
    assert report == GpuReport(
        (
            Gpu("Tesla T4", 16 * GIB, 15 * GIB, GpuDevice("GPU-1", 1, "0000:55:00.0"), (7, 5)),
            Gpu("Tesla T4", 16 * GIB, 15 * GIB, GpuDevice("GPU-0", 0, "0000:65:00.0"), (7, 5)),
        ),
        "580.1",
        None,
        driver_cuda=(13, 1),
    )
    assert not driver.is_open


def test_instances_of_a_card_stand_in_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeDriver(mig=True).install(monkeypatch)
    for number, minor in ((0, 30), (2, 39)):
        memory = tmp_path / "gpu0/mig" / f"gi{10 + number}"
        (memory / "ci0").mkdir(parents=True)
        (memory / "access").write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\n")
        (memory / "ci0/access").write_text(f"DeviceFileMinor: {minor + 1}\n")
    found = {gpu.device.uuid: gpu.device.capability_minors for gpu in read_nvml(tmp_path).gpus}
    assert found == {"MIG-0-0": (30, 31), "MIG-0-2": (39, 40), "GPU-1": ()}
    unseen = {gpu.device.capability_minors for gpu in read_nvml(tmp_path / "no").gpus}
    assert unseen == {()}


@pytest.mark.parametrize(
    ("count", "failing", "problem"),
    [
        (0, "", "sees no GPU"),
        (1, "nvmlInit", "no NVIDIA GPU is usable"),
        (1, "nvmlDeviceGetCount", "does not answer"),
        (1, "nvmlDeviceGetMemoryInfo", "does not answer"),
    ],
)
def test_a_driver_that_does_not_help_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, count: int, failing: str, problem: str
) -> None:
    driver = FakeDriver(count, failing)
    driver.install(monkeypatch)
    report = read_nvml()
    assert report.gpus == ()
    assert problem in (report.problem or "")
    assert not driver.is_open


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, None),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, None),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, DeviceProblem.DRIVER_CHANGED),
        (pynvml.NVML_ERROR_NO_PERMISSION, DeviceProblem.NOT_PERMITTED),
        (pynvml.NVML_ERROR_UNKNOWN, DeviceProblem.UNKNOWN),
    ],
)
def test_a_machine_without_a_gpu_and_one_whose_driver_is_broken_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: int, problem: DeviceProblem | None
) -> None:
    FakeDriver(failing="nvmlInit", error=error).install(monkeypatch)
    failure = read_nvml().failure
    assert (failure.problem if failure else None) is problem


def test_a_card_that_fell_off_the_bus_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    FakeDriver(failing="nvmlDeviceGetMemoryInfo", error=lost).install(monkeypatch)
    failure = read_nvml().failure
    assert failure is not None
    assert failure.problem is DeviceProblem.CARD_FAILED
    assert "Xid" in str(failure)


def card(number: int) -> Gpu:
    return Gpu(f"card {number}", 24 * GIB, 24 * GIB, GpuDevice(f"GPU-{number}abc", number))


CARDS = (card(0), card(1), card(2))


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("2", (2,)),
        ("2,0", (2, 0)),
        ("GPU-1abc", (1,)),
        ("GPU-2", (2,)),
        ("GPU", ()),  # which one?
        ("1, 0", (1, 0)),
        ("0,7,1", (0,)),  # CUDA, too, stops at what it does not know.
        ("1,1", (1,)),
        ("-1", ()),
    ],
)
def test_the_owners_choice_of_cards_counts(told: str | None, chosen: tuple[int, ...]) -> None:
    environment = {} if told is None else {"CUDA_VISIBLE_DEVICES": told}
    assert chosen_gpus(CARDS, environment) == tuple(CARDS[number] for number in chosen)

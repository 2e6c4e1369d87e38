from pathlib import Path
from types import SimpleNamespace

import pytest

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.gpus import Gpu, GpuReport
from capanode.hardware import (
    Machine,
    gpu_failure,
    hardware_findings,
    hardware_of,
    probe_machine,
    torch_cuda_version,
    usable_gpus,
)
from capanode.sandbox.gpu import GpuDevice
from protocol.limits import NAME_CHARS_MAX
from protocol.offers import Hardware

GIB = 1024**3
NO_GPU = GpuReport((), None, "no NVIDIA GPU is usable here: NVML Shared Library Not Found")
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB, GpuDevice("GPU-a", 0))
T4 = Gpu("Tesla T4", 16 * GIB, 15 * GIB, GpuDevice("GPU-t", 1))


def machine(gpu: GpuReport = NO_GPU, torch_cuda: str | None = None) -> Machine:
    return Machine(
        cpu_name="Example 9000",
        cpu_threads=8,
        memory_bytes=32 * GIB,
        memory_free_bytes=20 * GIB,
        system="Linux 6.1 x86_64",
        gpu=gpu,
        torch_cuda=torch_cuda,
    )


def gpus(*found: Gpu) -> GpuReport:
    return GpuReport(found, "580.1", None, driver_cuda=(13, 0))


def test_a_node_without_a_gpu_is_labelled_as_a_processor() -> None:
    assert hardware_of(machine()) == Hardware("cpu", "Example 9000 (8 threads)", 32 * GIB, 1)


def test_the_gpus_that_run_jobs_are_offered() -> None:
    offered = hardware_of(machine(), [A100, A100])
    assert offered == Hardware("cuda", "NVIDIA A100-SXM4-80GB", 80 * GIB, 2)


def test_a_gpu_that_torch_cannot_use_runs_nothing() -> None:
    assert usable_gpus(machine(gpus(A100)), {}) == ()
    assert usable_gpus(machine(gpus(A100), torch_cuda="13.0"), {}) == (A100,)


def test_of_unlike_gpus_the_kind_with_the_most_memory_is_offered() -> None:
    offered = hardware_of(machine(), (T4, A100, T4))
    assert (offered.name, offered.count) == (A100.name, 1)
    offered = hardware_of(machine(), [*[T4] * 6, A100])
    assert (offered.name, offered.count) == (T4.name, 6)


@pytest.mark.parametrize(
    ("torch_cuda", "driver_cuda", "works"),
    [
        ("13.0", (13, 0), True),
        ("13.2", (13, 0), True),  # Minor versions run on any driver of the same major one.
        ("12.8", (13, 0), True),
        ("13.0", (12, 8), False),
        ("13.0", None, True),  # Then the worker finds out.
    ],
)
def test_a_driver_older_than_torchs_cuda_is_known_before_any_worker_starts(
    torch_cuda: str, driver_cuda: tuple[int, int] | None, works: bool
) -> None:
    found = machine(GpuReport((A100,), "560.1", None, None, driver_cuda), torch_cuda)
    failure = gpu_failure(found)
    assert bool(usable_gpus(found, {})) is works is (failure is None)
    if failure is not None:
        assert failure.problem is DeviceProblem.DRIVER_TOO_OLD
        assert "560.1" in failure.reason
        assert "newer NVIDIA driver" in failure.advice


def test_a_driver_that_was_updated_under_way_is_no_machine_without_a_gpu() -> None:
    mismatch = DeviceFailure(DeviceProblem.DRIVER_CHANGED, "Driver/library version mismatch")
    found = machine(GpuReport((), None, "no NVIDIA GPU is usable", mismatch), "13.0")
    finding = hardware_findings(found)[-1]
    assert not finding.works
    assert "reboot" in finding.advice
    assert "no NVIDIA GPU" not in finding.detail


def test_what_a_trial_of_the_gpu_met_is_told_by_the_doctor() -> None:
    lost = DeviceFailure(DeviceProblem.DRIVER_LOST, "CUDA 999: unknown error")
    finding = hardware_findings(machine(gpus(A100), "13.0"), lost)[-1]
    assert (finding.works, A100.name in finding.detail) == (False, True)
    assert "nvidia_uvm" in finding.advice


@pytest.mark.parametrize(
    ("kind", "vendor", "words"),
    [
        ("0x030000", "0x1002", "AMD GPU at 0000:03:00.0: not supported yet (ROCm)"),
        ("0x040300", "0x1002", ""),  # the card's sound
        ("0x030000", "0x8086", ""),
    ],
)
def test_a_gpu_of_another_maker_is_told_as_not_supported_yet(
    tmp_path: Path, kind: str, vendor: str, words: str
) -> None:
    card = tmp_path / "0000:03:00.0"
    card.mkdir()
    (card / "class").write_text(f"{kind}\n")
    (card / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "0000:04:00.0").mkdir()
    found = probe_machine(read_gpus=lambda: NO_GPU, pci=tmp_path)
    assert words in found.foreign_gpu
    assert bool(found.foreign_gpu) is bool(words)
    if words:
        assert words in hardware_findings(found)[-1].detail


@pytest.mark.parametrize("length", [1, 127, 128, 500])
def test_a_long_name_is_cut_to_what_an_offer_takes(length: int) -> None:
    long = Machine("x" * length, 8, GIB, GIB, "Linux", NO_GPU, None)
    assert len(hardware_of(long).name) <= NAME_CHARS_MAX
    assert hardware_of(long).name.endswith(" (8 threads)")


@pytest.mark.parametrize(
    ("found", "works", "words"),
    [
        (machine(), False, "processor"),
        (machine(gpus(A100)), False, "without CUDA"),
        (machine(gpus(A100)), False, "capanode setup"),
        (machine(gpus(A100), torch_cuda="13.0"), True, "driver 580.1; torch for CUDA 13.0"),
    ],
)
def test_the_doctor_says_what_the_gpu_is_good_for(found: Machine, works: bool, words: str) -> None:
    finding = hardware_findings(found)[-1]
    assert (finding.subject, finding.works) == ("gpu", works)
    assert words in f"{finding.detail} {finding.advice}"
    assert bool(finding.advice) is not works


def test_the_doctor_warns_of_too_little_memory() -> None:
    small = Machine("x", 1, 4 * GIB, GIB, "Linux", NO_GPU, None)
    finding = hardware_findings(small)[1]
    assert not finding.works
    assert "2 GiB" in finding.advice


def test_this_machine_is_probed_without_error() -> None:
    found = probe_machine()
    assert found.cpu_threads >= 1
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert hardware_of(found).count >= 1


def test_the_processors_name_comes_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example   9000 @ 3 GHz\n")
    found = probe_machine(read_gpus=lambda: NO_GPU, proc=tmp_path)
    assert found.cpu_name == "Example 9000 @ 3 GHz"
    assert probe_machine(read_gpus=lambda: NO_GPU, proc=tmp_path / "no").cpu_name


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "1048576\n", 1_048_576),
        ("memory/memory.limit_in_bytes", "1048576", 1_048_576),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "9223372036854771712", None),
    ],
)
def test_a_containers_memory_limit_counts(
    tmp_path: Path, file: str, text: str, expected: int | None
) -> None:
    whole = probe_machine(read_gpus=lambda: NO_GPU, cgroup=tmp_path).memory_bytes
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    found = probe_machine(read_gpus=lambda: NO_GPU, cgroup=tmp_path)
    assert found.memory_bytes == (expected or whole)
    assert found.memory_free_bytes <= found.memory_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda: Optional[str] = None\n", None),
        ("cuda: Optional[str] = '13.0'\n", "13.0"),
        ("__all__ = ['cuda']\ncuda = \"12.8\"\n", "12.8"),
        ("", None),
    ],
)
def test_the_cuda_version_is_read_without_importing_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str | None
) -> None:
    (tmp_path / "version.py").write_text(text)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    assert torch_cuda_version() == expected


def test_without_torch_there_is_no_cuda_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torch_cuda_version() is None

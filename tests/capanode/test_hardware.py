from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from capanode.hardware import (
    Gpu,
    GpuReport,
    Machine,
    hardware_findings,
    hardware_of,
    probe_machine,
    read_nvml,
    torch_cuda_version,
)
from protocol.limits import NAME_CHARS_MAX
from protocol.offers import Hardware

GIB = 1024**3
NO_GPU = GpuReport((), None, "no NVIDIA GPU is usable here: NVML Shared Library Not Found")
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 79 * GIB)
T4 = Gpu("Tesla T4", 16 * GIB, 15 * GIB)


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
    return GpuReport(found, "580.1", None)


def test_a_node_without_a_gpu_is_labelled_as_a_processor() -> None:
    assert hardware_of(machine()) == Hardware("cpu", "Example 9000 (8 threads)", 32 * GIB, 1)


def test_gpus_that_torch_can_use_are_offered() -> None:
    offered = hardware_of(machine(gpus(A100, A100), torch_cuda="13.0"))
    assert offered == Hardware("cuda", "NVIDIA A100-SXM4-80GB", 80 * GIB, 2)


def test_a_gpu_that_torch_cannot_use_is_not_offered() -> None:
    assert hardware_of(machine(gpus(A100))).kind == "cpu"


def test_of_unlike_gpus_the_kind_with_the_most_memory_is_offered() -> None:
    offered = hardware_of(machine(gpus(T4, A100, T4), torch_cuda="13.0"))
    assert (offered.name, offered.count) == (A100.name, 1)
    offered = hardware_of(machine(gpus(*[T4] * 6, A100), torch_cuda="13.0"))
    assert (offered.name, offered.count) == (T4.name, 6)


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


class FakeDriver:
    """The few NVML calls that we make; `failing` names the one that does not work."""

    def __init__(self, count: int = 2, failing: str = "") -> None:
        self.count = count
        self.failing = failing
        self.is_open = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = SimpleNamespace(total=16 * GIB, free=15 * GIB)
        answers = {
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda handle: memory,
            "nvmlDeviceGetName": lambda handle: "Tesla T4",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlInit": lambda: setattr(self, "is_open", True),
            "nvmlShutdown": lambda: setattr(self, "is_open", False),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self._fail if name == self.failing else answer)

    def _fail(self, *arguments: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)


def test_gpus_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    driver.install(monkeypatch)
    assert read_nvml() == GpuReport((T4, T4), "580.1", None)
    assert not driver.is_open


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

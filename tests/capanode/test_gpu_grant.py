"""What a worker with a GPU is given, on hosts that are folders."""

import ctypes
from pathlib import Path

import pytest

from capanode.sandbox.gpu import GpuDevice, folders_of_cache, plan_grant
from capanode.sandbox.view import Mount
from tests.capanode.stand_in_driver import driver_library, host_with_cards

FIRST = GpuDevice("GPU-one", 0, "0000:01:00.0")
SECOND = GpuDevice("GPU-two", 1, "0000:02:00.0")


def targets(mounts: tuple[Mount, ...]) -> set[str]:
    return {mount.target for mount in mounts}


def test_a_worker_sees_its_own_card_only(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=2, driver_at="/usr/local/nvidia/lib64")
    grant = plan_grant([SECOND], host=host, environment={})
    assert targets(grant.devices) == {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1"}
    assert grant.environment["CUDA_VISIBLE_DEVICES"] == "GPU-two"
    assert grant.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    seen = targets(grant.facts)
    assert {f"/sys/devices/pci0000:00/0000:02:00.{n}" for n in (0, 1)} <= seen
    assert not any("0000:01" in path for path in seen)
    assert not {"/sys/devices", "/sys/bus/pci"} & seen
    assert ("/sys/devices/pci0000:00/0000:02:00.0", "/sys/bus/pci/devices/0000:02:00.0") in (
        grant.links
    )


def test_a_group_of_cards_is_one_grant(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=3, driver_at="/usr/local/nvidia/lib64")
    grant = plan_grant([SECOND, FIRST], host=host, environment={})
    assert grant.environment["CUDA_VISIBLE_DEVICES"] == "GPU-two,GPU-one"
    assert {"/dev/nvidia0", "/dev/nvidia1"} <= targets(grant.devices)
    assert "/dev/nvidia2" not in targets(grant.devices)


def test_an_instance_of_a_card_gets_the_files_that_open_it(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=1, driver_at="/usr/local/nvidia/lib64")
    instance = GpuDevice("MIG-a", 0, "0000:01:00.0", (21, 99))
    found = targets(plan_grant([instance], host=host, environment={}).devices)
    assert "/dev/nvidia-caps/nvidia-cap21" in found
    assert not {"/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap99"} & found


@pytest.mark.parametrize(
    "folder",
    ["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/opt/vendor/lib64", "/run/opengl-driver/lib"],
)
def test_the_driver_is_found_in_the_places_of_others(tmp_path: Path, folder: str) -> None:
    host = host_with_cards(tmp_path, cards=1, driver_at=folder)
    grant = plan_grant([FIRST], host=host, environment={})
    found = {f"{folder}/{name}" for name in ("libcuda.so.1", "libnvidia-ptxjitcompiler.so.1")}
    assert targets(grant.libraries) == found
    assert grant.environment["LD_LIBRARY_PATH"] == folder


def test_the_loaders_own_words_count_and_what_is_no_driver_is_not_shown(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=1, driver_at="/srv/drivers")
    told = {"LD_LIBRARY_PATH": "relative:/nowhere:/srv/drivers"}
    grant = plan_grant([FIRST], host=host, environment=told)
    assert "/srv/drivers/libcuda.so.1" in targets(grant.libraries)
    assert not any("something-else" in path for path in targets(grant.libraries))
    assert not plan_grant([FIRST], host=host, environment={}).libraries


def test_a_driver_in_the_systems_own_folder_needs_no_mount(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=1, driver_at="/usr/lib/x86_64-linux-gnu")
    grant = plan_grant([FIRST], host=host, environment={})
    assert grant.libraries == ()
    assert "LD_LIBRARY_PATH" not in grant.environment


def test_a_driver_behind_the_systems_alternatives_is_found_where_it_is(tmp_path: Path) -> None:
    """Debian's: the link leads through /etc, which a worker does not see."""
    real = "/usr/lib/x86_64-linux-gnu/nvidia/current"
    host = host_with_cards(tmp_path, cards=1, driver_at=real)
    alternatives = host / "etc/alternatives"
    alternatives.mkdir(parents=True)
    (alternatives / "libcuda").symlink_to(host / real.lstrip("/") / "libcuda.so.1")
    (host / "usr/lib/x86_64-linux-gnu/libcuda.so.1").symlink_to(alternatives / "libcuda")
    assert plan_grant([FIRST], host=host, environment={}).environment["LD_LIBRARY_PATH"] == real


def test_every_device_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=1, driver_at="/usr/local/nvidia/lib64")
    grant = plan_grant([FIRST], host=host, environment={}, whole_sys=True)
    assert {"/sys/devices", "/sys/bus/pci"} <= targets(grant.facts)
    assert grant.links == ()


def test_subsystem_for_linux_has_a_device_of_its_own(tmp_path: Path) -> None:
    host = host_with_cards(tmp_path, cards=0, driver_at="/usr/lib/wsl/lib")
    (host / "usr/lib/wsl/drivers").mkdir()
    (host / "dev/dxg").write_text("")
    grant = plan_grant([GpuDevice("GPU-w")], host=host, environment={})
    assert "/dev/dxg" in targets(grant.devices)
    assert "/usr/lib/wsl/drivers" in targets(grant.facts)
    assert grant.environment["LD_LIBRARY_PATH"] == "/usr/lib/wsl/lib"


def test_the_loaders_cache_names_the_folder_of_the_64_bit_driver() -> None:
    listing = (
        "2 libs found in cache `/etc/ld.so.cache'\n"
        "\tlibcuda.so.1 (libc6,x86-64) => /opt/nvidia/570/libcuda.so.1\n"
        "\tlibcuda.so.1 (libc6) => /usr/lib32/libcuda.so.1\n"
        "\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12\n"
    )
    assert folders_of_cache(listing) == ["/opt/nvidia/570"]
    assert folders_of_cache("") == []


def test_the_stand_in_driver_is_a_library_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so.1"
    path.write_bytes(driver_library(304))
    assert ctypes.CDLL(str(path)).cuInit(0) == 304

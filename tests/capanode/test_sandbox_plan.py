"""What a sandbox is told to be, without starting one: view, options, limits."""

import os
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from capanode.sandbox import bwrap
from capanode.sandbox.bwrap import World, bwrap_candidates, bwrap_options
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.gpu import GpuGrant
from capanode.sandbox.launch import FileRules, Launch, parse_launch
from capanode.sandbox.limits import (
    GPU_FILES_MAX,
    NICE_DEFAULT,
    Limits,
    limits_for_model,
    open_resident,
    prefer_as_victim,
    tasks_of_user,
)
from capanode.sandbox.spawn import Program, Sandbox
from capanode.sandbox.view import MODEL_TARGET, Mount, own_packages, plan_view
from protocol.messages import IsolationTier

GIB = 1 << 30
GRANT = GpuGrant(
    ("GPU-one",),
    (Mount("/dev/nvidiactl", "/dev/nvidiactl"), Mount("/dev/nvidia3", "/dev/nvidia3")),
    (Mount("/opt/vendor/libcuda.so.580", "/opt/vendor/libcuda.so.1"),),
    (Mount("/sys/devices/pci0000:00/0000:01:00.0", "/sys/devices/pci0000:00/0000:01:00.0"),),
    (("/sys/devices/pci0000:00/0000:01:00.0", "/sys/bus/pci/devices/0000:01:00.0"),),
)


def option_pairs(words: list[str], name: str) -> list[tuple[str, str]]:
    return [(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == name]


def world(tmp_path: Path, *, gpu: bool = False) -> World:
    return World(
        view=plan_view(own_packages(), tmp_path),
        limits=limits_for_model(0),
        environment={"HOME": "/tmp"},
        gpu=GRANT if gpu else None,
        filter_fd=7,
        info_fd=8,
    )


def test_view_holds_python_packages_and_the_model_only(tmp_path: Path) -> None:
    view = plan_view(own_packages(), tmp_path)
    targets = {mount.target for mount in view.mounts}
    assert {"/code/capanode", "/code/protocol", MODEL_TARGET} <= targets
    assert not any("coordinator" in mount.source for mount in view.mounts)
    assert view.search_path[0] == "/code"
    assert Path(view.python).exists()
    forbidden = {"/", "/etc", "/home", "/root", "/usr", "/var", "/tmp", "/proc", "/sys"}
    assert forbidden.isdisjoint(view.sources)


def test_repository_itself_is_not_shown(tmp_path: Path) -> None:
    repository = own_packages()[0].parent
    assert str(repository) not in plan_view(own_packages(), tmp_path).sources


def test_model_behind_a_link_is_shown_as_what_it_is(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    assert Mount(str(real), MODEL_TARGET) in plan_view((), link).mounts


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="capanode models pull"):
        plan_view((), tmp_path / "absent")
    with pytest.raises(SandboxError, match="package folder"):
        plan_view((tmp_path / "absent",), None)


def test_system_python_does_not_show_the_whole_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    view = plan_view((), None)
    assert "/usr" not in view.sources
    assert not any(mount.target == "/usr" for mount in view.mounts)


def test_a_virtual_environment_of_the_system_python_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its folder would otherwise be bound at its own path, which shows where its owner keeps it."""
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setitem(sysconfig.get_config_vars(), "platbase", str(tmp_path))
    own = Path(sysconfig.get_path("platstdlib"))
    assert own.is_relative_to(tmp_path)
    own.mkdir(parents=True)
    assert not [mount for mount in plan_view((), None).mounts if str(own) in mount.target]


def test_bwrap_shares_no_namespace_and_binds_read_only(tmp_path: Path) -> None:
    words = bwrap_options(world(tmp_path))
    for word in (
        *("--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--disable-userns", "--die-with-parent", "--new-session", "--clearenv", "--as-pid-1"),
    ):
        assert word in words
    assert not {"--bind", "--dev-bind", "--share-net"} & set(words)
    assert (str(tmp_path), MODEL_TARGET) in option_pairs(words, "--ro-bind")
    assert words.index("--remount-ro") > words.index("--tmpfs")
    assert "--dev-bind-try" not in words


def test_gpu_devices_are_added_only_when_asked_for(tmp_path: Path) -> None:
    words = bwrap_options(world(tmp_path, gpu=True))
    for path in ("/dev/nvidiactl", "/dev/nvidia3"):
        assert (path, path) in option_pairs(words, "--dev-bind-try")
    assert ("/opt/vendor/libcuda.so.580", "/opt/vendor/libcuda.so.1") in option_pairs(
        words, "--ro-bind-try"
    )
    assert GRANT.links[0] in option_pairs(words, "--symlink")
    assert not {"/sys", "/sys/devices", "/sys/bus/pci"} & set(words)


def test_no_process_file_system_is_mounted_without_a_gpu(tmp_path: Path) -> None:
    """Its mount tables name host paths."""
    words = bwrap_options(world(tmp_path))
    assert "--proc" not in words
    assert ("/proc/cpuinfo", "/proc/cpuinfo") in option_pairs(words, "--ro-bind-try")
    with_gpu = bwrap_options(world(tmp_path, gpu=True))
    assert with_gpu[with_gpu.index("--proc") + 1] == "/proc"
    # CUDA's driver names its threads there; bwrap itself covers /proc/sys.
    assert "/proc" not in [b for a, b in pairwise(with_gpu) if a == "--remount-ro"]


def test_every_tmpfs_is_bounded(tmp_path: Path) -> None:
    words = bwrap_options(world(tmp_path))
    for index in [i for i, word in enumerate(words) if word == "--tmpfs"]:
        assert words[index - 4] == "--size"
        assert int(words[index - 3]) <= 64 << 20


@pytest.mark.parametrize(
    ("answer", "usable"),
    [
        ("bubblewrap 0.8.0", True),
        ("bubblewrap 1.2", True),
        ("bubblewrap 0.6.1", False),
        ("", False),
    ],
)
def test_bwrap_must_be_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, usable: bool
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho {answer}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(bwrap, "_SYSTEM_BWRAP", fake)
    assert (fake in bwrap_candidates()) is usable


def test_system_bwrap_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho bubblewrap 0.9\n")
    fake.chmod(0o755)
    monkeypatch.setattr(bwrap, "_SYSTEM_BWRAP", fake)
    assert bwrap_candidates()[0] == fake


def test_limits_grow_with_the_model() -> None:
    small, large = limits_for_model(0), limits_for_model(4 * GIB)
    assert GIB <= small.memory_bytes <= 2 * GIB
    assert large.memory_bytes - small.memory_bytes == 12 * GIB
    assert small.address_space_bytes is not None
    assert small.address_space_bytes > small.memory_bytes
    with_gpu = limits_for_model(GIB, gpu=True)
    assert with_gpu.address_space_bytes is None
    assert with_gpu.files_max == GPU_FILES_MAX > small.files_max
    assert with_gpu.memory_bytes > limits_for_model(GIB).memory_bytes


def test_resident_size_is_read_for_the_living_only() -> None:
    with open_resident(os.getpid()) as resident_bytes:
        assert resident_bytes() > 1 << 20
    with open_resident(2**22 + 1) as resident_bytes:
        assert resident_bytes() == 0
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child,
        open_resident(child.pid) as resident_bytes,
    ):
        assert resident_bytes() > 0
        child.kill()
        child.wait()
        assert resident_bytes() == 0


def test_limits_say_how_far_a_worker_stands_back() -> None:
    assert limits_for_model(0).nice == NICE_DEFAULT
    assert limits_for_model(0, nice=3).nice == 3


def test_process_that_is_gone_can_be_named_as_victim() -> None:
    prefer_as_victim(2**22 + 1)


def test_own_tasks_are_counted() -> None:
    assert tasks_of_user(os.geteuid()) >= 1


def test_launch_plan_survives_the_trip() -> None:
    plan = Launch(
        parent_pid=7,
        user_id=None,
        reachable=("/a",),
        file_rules=FileRules(("/r",), ("/w",), ("/d",), gpu=False),
        working_dir="/",
        command=("/bin/true",),
        environment={"A": "b"},
    )
    assert parse_launch(plan.to_json()) == plan


def test_nothing_is_started_without_isolation(tmp_path: Path) -> None:
    program = Program("capanode.worker.main", limits=Limits(1 << 30, None), model_dir=tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxError, match="no isolation works here"):
        Sandbox(IsolationTier.NONE).spawn(program)
    assert set(os.listdir("/proc/self/fd")) == before


def test_failed_start_leaves_no_descriptor(tmp_path: Path) -> None:
    program = Program("capanode.worker.main", limits=Limits(1 << 30, None), model_dir=tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    sandbox = Sandbox(IsolationTier.BWRAP, tmp_path / "absent")
    if os.geteuid() == 0:
        pytest.skip("as root it is the launcher that finds out, in the child")
    with pytest.raises(SandboxError, match="could not be started"):
        sandbox.spawn(program)
    assert set(os.listdir("/proc/self/fd")) == before

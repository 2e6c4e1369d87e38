"""Real attempts to break out of every sandbox that works on this machine."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capanode.sandbox.gpu import GpuDevice, GpuGrant, plan_grant
from capanode.sandbox.probe import probe_isolation, probe_sandbox
from capanode.sandbox.selftest import START_CUDA
from capanode.sandbox.spawn import Sandbox
from protocol.messages import IsolationTier
from tests.capanode.sandbox_makers import (
    REPOSITORY,
    SMALL_LIMITS,
    ask,
    model_folder,
    sandbox_name,
    working_sandboxes,
)
from tests.capanode.stand_in_driver import installed_driver

CARD = GpuDevice("GPU-stand-in")

pytestmark = pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here")


@pytest.fixture(params=working_sandboxes(), ids=sandbox_name)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    value = request.param
    assert isinstance(value, Sandbox)
    return value


@pytest.fixture
def model() -> Iterator[Path]:
    with model_folder() as folder:
        yield folder


@pytest.fixture
def node_key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(0o600)
    return path


def test_self_test_finds_a_tier_here() -> None:
    report = probe_isolation()
    assert report.sandbox is not None
    assert report.tier is working_sandboxes()[0].tier


def test_every_fact_of_the_self_test_holds(sandbox: Sandbox) -> None:
    assert [fact for fact in probe_sandbox(sandbox) if not fact.ok] == []


def test_dangerous_system_calls_are_refused(sandbox: Sandbox, model: Path) -> None:
    answers = ask(sandbox, model, do="calls")
    assert {name: met for name, met in answers.items() if met != "EPERM"} == {}


def test_nothing_can_be_reached_over_a_network(sandbox: Sandbox, model: Path) -> None:
    answers = ask(sandbox, model, do="network")
    assert [name for name, met in answers.items() if not met] == []
    assert {answers[name] for name in ("inet", "inet6", "unix", "netlink", "vsock")} == {"EPERM"}


def test_no_file_outside_can_be_read_or_changed(
    sandbox: Sandbox, model: Path, node_key: Path
) -> None:
    # The model folder belongs to whoever runs the test: modes alone must not be what protects it.
    model.chmod(0o777)
    (model / "behaviour").chmod(0o666)
    answers = ask(sandbox, model, do="files", secret=str(node_key))
    assert [name for name, met in answers.items() if not met] == []
    assert answers["node key"] == ("ENOENT" if sandbox.tier is IsolationTier.BWRAP else "EACCES")
    assert (model / "behaviour").read_text() == ""
    assert node_key.read_bytes() == b"secret"


@pytest.mark.parametrize("kind", ["x32", "i386"])
def test_calls_of_another_architecture_kill(sandbox: Sandbox, model: Path, kind: str) -> None:
    assert ask(sandbox, model, do="foreign", kind=kind) is None


def test_scratch_is_bounded(sandbox: Sandbox, model: Path) -> None:
    if sandbox.tier is IsolationTier.LANDLOCK:
        pytest.skip("without mounts only each file is bounded, as the tier's documentation says")
    limits = replace(SMALL_LIMITS, scratch_bytes=16 << 20)
    assert 14 <= ask(sandbox, model, limits, do="scratch")["mib"] <= 16


def test_threads_are_bounded(sandbox: Sandbox, model: Path) -> None:
    limits = replace(SMALL_LIMITS, processes_max=40)
    started = ask(sandbox, model, limits, do="threads", limit=2_000)["threads"]
    # Where processes of the same user outside count too, their number is added to the limit.
    assert 20 <= started < 2_000


def test_worker_sees_no_more_than_it_needs(sandbox: Sandbox, model: Path) -> None:
    os.environ["CAPANODE_TEST_SECRET"] = "do not show"
    try:
        seen = ask(sandbox, model, do="describe")
    finally:
        del os.environ["CAPANODE_TEST_SECRET"]
    assert "do not show" not in str(seen["environment"])
    assert set(seen["descriptors"]) == {0, 1, 2, seen["channel"]}
    assert seen["user"] != 0
    assert 0 not in seen["groups"]
    told = {name: text for name, text in seen.items() if name.startswith(("/proc", "/etc"))}
    assert set(told.values()) <= {"ENOENT", "EACCES"}, told
    if sandbox.tier is IsolationTier.BWRAP:
        assert seen["user"] == 65_534
        assert str(REPOSITORY / "capanode") not in str(seen)
        assert str(model) not in str(seen)
        assert {"cpuinfo", "self"} <= set(seen["processes"]) <= {"cpuinfo", "meminfo", "self"}
        assert {"home", "etc", "var", "work"}.isdisjoint(seen["root"])


def test_every_fact_holds_for_a_worker_with_a_gpu(sandbox: Sandbox) -> None:
    """With a stand-in driver, in a folder of its own: no GPU is at hand here."""
    with installed_driver(0) as folder:
        facts = probe_sandbox(sandbox, gpu=grant_of(folder))
    assert [fact for fact in facts if not fact.ok] == []
    names = {fact.name for fact in facts}
    assert {START_CUDA, "name a thread", "listen for the driver", "accept a connection"} <= names
    without = {fact.name for fact in probe_sandbox(sandbox)}
    assert without - names == {"make an anonymous file", "lock a file", "read the mount table"}


def test_what_the_driver_says_in_the_sandbox_is_told(sandbox: Sandbox) -> None:
    with installed_driver(304) as folder:
        facts = probe_sandbox(sandbox, gpu=grant_of(folder))
    (started,) = (fact for fact in facts if fact.name == START_CUDA)
    assert (started.ok, started.detail) == (False, "cuInit gave 304")


def test_a_driver_that_is_not_there_is_told(sandbox: Sandbox) -> None:
    facts = probe_sandbox(sandbox, gpu=plan_grant([CARD], environment={}))
    (started,) = (fact for fact in facts if fact.name == START_CUDA)
    assert "libcuda.so.1 does not load" in started.detail


def grant_of(driver: Path) -> GpuGrant:
    return plan_grant([CARD], environment={"LD_LIBRARY_PATH": str(driver)})


def test_program_that_does_not_start_is_said_so(model: Path) -> None:
    facts = probe_sandbox(Sandbox(IsolationTier.BWRAP, Path("/bin/false")))
    assert [(fact.name, fact.ok) for fact in facts] == [("start", False)]

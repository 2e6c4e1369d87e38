"""The start-up self-test, where something or everything is missing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from capanode.sandbox import probe
from capanode.sandbox.gpu import GpuDevice, GpuGrant
from capanode.sandbox.probe import Fact, GpuTrial, probe_isolation
from capanode.sandbox.selftest import START_CUDA
from capanode.sandbox.spawn import Sandbox
from protocol.messages import IsolationTier


def outcomes(
    monkeypatch: pytest.MonkeyPatch, working: set[IsolationTier], *, bwraps: int = 1
) -> None:
    """Let only these tiers pass the self-test."""

    def pretend(sandbox: Sandbox, *, gpu: GpuGrant | None = None) -> tuple[Fact, ...]:
        works = sandbox.tier in working
        return (Fact("fork", works, "refused (EPERM)" if works else "IT WORKED"),)

    paths = tuple(Path(f"/opt/{number}/bwrap") for number in range(bwraps))
    monkeypatch.setattr(probe, "bwrap_candidates", lambda: paths)
    monkeypatch.setattr(probe, "landlock_version", lambda: 7)
    monkeypatch.setattr(probe, "is_supported", lambda: True)
    monkeypatch.setattr(probe, "probe_sandbox", pretend)


def test_strongest_tier_that_held_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, {IsolationTier.BWRAP, IsolationTier.LANDLOCK})
    report = probe_isolation()
    assert report.tier is IsolationTier.BWRAP
    assert report.sandbox == Sandbox(IsolationTier.BWRAP, Path("/opt/0/bwrap"))
    assert report.advice == ()


def test_fallback_says_how_to_get_the_full_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, {IsolationTier.LANDLOCK}, bwraps=2)
    report = probe_isolation()
    assert report.tier is IsolationTier.LANDLOCK
    assert len(report.advice) == 1
    assert "user namespaces" in report.advice[0]


def test_fallback_for_want_of_bwrap_says_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, {IsolationTier.LANDLOCK}, bwraps=0)
    assert "install bubblewrap" in probe_isolation().advice[0]


def test_one_attempt_that_worked_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, set())
    report = probe_isolation()
    assert report.tier is IsolationTier.NONE
    assert report.sandbox is None
    assert [fact.detail for fact in report.facts] == ["IT WORKED", "IT WORKED"]
    assert "refuses remote jobs" in report.advice[-1]


def test_missing_bwrap_and_old_kernel_get_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, set(), bwraps=0)
    monkeypatch.setattr(probe, "landlock_version", lambda: 1)
    report = probe_isolation()
    assert report.sandbox is None
    assert any("install bubblewrap" in line for line in report.advice)
    assert any("Linux 6.2" in line for line in report.advice)


CARD = GpuDevice("GPU-one", 0, "0000:01:00.0")


def drivers(
    monkeypatch: pytest.MonkeyPatch,
    *,
    leaks: frozenset[IsolationTier] = frozenset(),
    starts: frozenset[tuple[IsolationTier, bool]] = frozenset(),
) -> None:
    """With a GPU, let some tiers leak, and let CUDA start in some, by what they show of /sys."""
    outcomes(monkeypatch, {IsolationTier.BWRAP, IsolationTier.LANDLOCK})

    def pretend(sandbox: Sandbox, *, gpu: GpuGrant | None = None) -> tuple[Fact, ...]:
        held = Fact("fork", gpu is None or sandbox.tier not in leaks, "tried")
        if gpu is None:
            return (held,)
        sees_all = gpu.uuids == ("whole",)
        started = (sandbox.tier, sees_all) in starts
        return (held, Fact(START_CUDA, started, "works" if started else "cuInit gave 304"))

    def plan(devices: Sequence[GpuDevice], *, whole_sys: bool) -> GpuGrant:
        assert list(devices) == [CARD]
        return GpuGrant(("whole" if whole_sys else "narrow",), (), (), (), ())

    monkeypatch.setattr(probe, "probe_sandbox", pretend)
    monkeypatch.setattr(probe, "plan_grant", plan)


def test_tier_must_hold_with_the_gpu_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    every = frozenset((tier, False) for tier in IsolationTier)
    drivers(monkeypatch, leaks=frozenset({IsolationTier.BWRAP}), starts=every)
    report = probe_isolation([CARD])
    assert report.tier is IsolationTier.LANDLOCK
    assert [fact.name for fact in report.facts] == ["fork", "with the GPU: fork"]
    assert report.gpu == GpuTrial("", whole_sys=False)


def test_more_of_the_kernels_devices_is_shown_only_to_a_driver_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drivers(monkeypatch, starts=frozenset({(IsolationTier.BWRAP, True)}))
    report = probe_isolation([CARD])
    assert (report.tier, report.gpu) == (IsolationTier.BWRAP, GpuTrial("", whole_sys=True))


def test_a_weaker_tier_is_taken_if_the_driver_starts_there_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drivers(monkeypatch, starts=frozenset({(IsolationTier.LANDLOCK, False)}))
    report = probe_isolation([CARD])
    assert (report.tier, report.gpu) == (IsolationTier.LANDLOCK, GpuTrial(""))


def test_a_driver_that_starts_nowhere_is_told_beside_the_best_tier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drivers(monkeypatch)
    report = probe_isolation([CARD])
    assert (report.tier, report.gpu) == (IsolationTier.BWRAP, GpuTrial("cuInit gave 304"))
    assert report.sandbox is not None
    assert all(fact.ok for fact in report.facts), "that CUDA starts is no fact of isolation"


def test_without_a_gpu_no_driver_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers(monkeypatch)
    assert probe_isolation().gpu is None


def test_other_machines_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "is_supported", lambda: False)
    report = probe_isolation()
    assert (report.tier, report.sandbox) == (IsolationTier.NONE, None)
    assert "Linux on x86-64" in report.facts[0].detail

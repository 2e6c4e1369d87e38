"""The start-up self-test, where something or everything is missing."""

from pathlib import Path

import pytest

from capanode.sandbox import probe
from capanode.sandbox.probe import Fact, probe_isolation
from capanode.sandbox.spawn import Sandbox
from protocol.messages import IsolationTier


def outcomes(
    monkeypatch: pytest.MonkeyPatch, working: set[IsolationTier], *, bwraps: int = 1
) -> None:
    """Let only these tiers pass the self-test."""

    def pretend(sandbox: Sandbox, *, gpu: bool = False) -> tuple[Fact, ...]:
        works = sandbox.tier in working
        return (Fact("fork", works, "refused (EPERM)" if works else "IT WORKED"),)

    paths = tuple(Path(f"/opt/{number}/bwrap") for number in range(bwraps))
    monkeypatch.setattr(probe, "bwrap_candidates", lambda: paths)
    monkeypatch.setattr(probe, "landlock_version", lambda: 7)
    monkeypatch.setattr(probe, "is_supported", lambda: True)
    monkeypatch.setattr(probe, "_GPU_DEVICE", Path("/nonexistent"))
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


def test_tier_must_hold_with_the_gpu_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, {IsolationTier.BWRAP, IsolationTier.LANDLOCK})
    monkeypatch.setattr(probe, "_GPU_DEVICE", Path("/dev/null"))

    def pretend(sandbox: Sandbox, *, gpu: bool = False) -> tuple[Fact, ...]:
        return (Fact("fork", not gpu or sandbox.tier is IsolationTier.LANDLOCK, "tried"),)

    monkeypatch.setattr(probe, "probe_sandbox", pretend)
    report = probe_isolation()
    assert report.tier is IsolationTier.LANDLOCK
    assert [fact.name for fact in report.facts] == ["fork", "with the GPU: fork"]


def test_other_machines_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "is_supported", lambda: False)
    report = probe_isolation()
    assert (report.tier, report.sandbox) == (IsolationTier.NONE, None)
    assert "Linux on x86-64" in report.facts[0].detail

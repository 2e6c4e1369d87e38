from pathlib import Path
from typing import Any

import pytest

from capanode import doctor
from capanode.config import NodeConfig
from capanode.doctor import FindingLevel, examine
from capanode.errors import NotRunningError
from capanode.gpus import GpuReport
from capanode.hardware import Machine, MachineCheck
from capanode.models.store import ModelStore
from capanode.ports import PortError
from capanode.sandbox.probe import Fact, IsolationReport
from capanode.sandbox.spawn import Sandbox
from protocol.messages import IsolationTier, Task
from protocol.programs.keyfile import create_key_file
from tests.capanode.test_workers import add_model
from tests.protocol.makers import COORDINATOR

GIB = 1024**3
MACHINE = Machine("a cpu", 2, 8 * GIB, 8 * GIB, "Linux", GpuReport((), None, "no GPU"), None)
HELD = IsolationReport(
    IsolationTier.BWRAP, (Fact("net", True, "EPERM"),), (), Sandbox(IsolationTier.BWRAP)
)
BROKEN = IsolationReport(
    IsolationTier.NONE, (Fact("bwrap", False, "no namespaces"),), ("allow namespaces",), None
)


@pytest.fixture(autouse=True)
def _a_machine_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sandbox, socket or port is touched."""

    def nobody(*_: Any, **__: Any) -> None:
        raise NotRunningError("nobody")

    monkeypatch.setattr(doctor, "probe_isolation", lambda devices: HELD)
    monkeypatch.setattr(doctor, "probe_machine", lambda: MACHINE)
    monkeypatch.setattr(doctor, "ask_status", nobody)
    monkeypatch.setattr(doctor, "check_port", lambda place: None)


def make_config(tmp_path: Path, **flags: Any) -> NodeConfig:
    return NodeConfig.resolve(flags={"data_dir": tmp_path, **flags})


def find(config: NodeConfig, subject: str) -> MachineCheck:
    (finding,) = (f for f in examine(config).findings if f.subject == subject)
    return finding


@pytest.mark.parametrize(
    ("installed", "report", "works", "words"),
    [
        (None, HELD, True, "not installed"),
        ("0.33.0", HELD, True, "0.33.0"),
        ("0.33.2.post1", HELD, True, "0.33.2"),
        ("0.34.0", HELD, False, "not run"),
        ("0.9.1", HELD, False, "not run"),
        ("dev", HELD, False, "not run"),
        ("0.33.0", BROKEN, False, "confines"),
    ],
)
def test_vllm_is_optional_and_of_one_version(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: str | None,
    report: IsolationReport,
    works: bool,
    words: str,
) -> None:
    monkeypatch.setattr(doctor, "installed_vllm", lambda: installed)
    monkeypatch.setattr(doctor, "probe_isolation", lambda _: report)
    finding = find(make_config(tmp_path), "vllm")
    assert (finding.works, bool(finding.advice)) == (works, not works)
    assert words in finding.detail
    assert "vllm" not in doctor.ESSENTIAL


def test_a_fresh_folder_lacks_a_key_and_a_model_and_says_how_to_get_them(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert "capanode init" in find(config, "key").advice
    config.key_path.write_text("not a key")
    assert "capanode init" not in find(config, "key").advice, "it would keep that file"
    assert "capanode models pull" in find(config, "models").advice
    assert not examine(config).can_serve


def test_what_is_still_to_do_is_no_blocker(tmp_path: Path) -> None:
    """The README's order: init, doctor, then the first model."""
    diagnosis = examine(make_config(tmp_path))
    assert diagnosis.blockers == ()
    assert diagnosis.verdict == (
        "This machine can serve jobs. Still to do: key, coordinator, models."
    )
    levels = {each.subject: diagnosis.level_of(each) for each in diagnosis.findings}
    assert levels["key"] is levels["models"] is FindingLevel.TO_DO
    assert (levels["gpu"], levels["memory"]) == (FindingLevel.HINT, FindingLevel.OK)


def test_a_wrong_key_or_a_missing_sandbox_is_a_blocker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe_isolation", lambda _: BROKEN)
    config = make_config(tmp_path)
    config.key_path.write_text("not a key")
    diagnosis = examine(config)
    assert [each.subject for each in diagnosis.blockers] == ["key", "isolation"]
    assert "cannot serve jobs yet: see key, isolation" in diagnosis.verdict


def test_a_node_that_runs_is_asked_what_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line may have named coordinators and models that no file does."""
    create_key_file(tmp_path / "node.key")
    status = {
        "paused": "",
        "listen": ["/ip4/0.0.0.0/tcp/4101"],
        "coordinators": [{"peer_id": "12D3", "state": "attached", "error": ""}],
        "models": [{"name": "a-model"}],
    }
    monkeypatch.setattr(doctor, "ask_status", lambda _: status)
    config = make_config(tmp_path)
    assert "attached" in find(config, "coordinator").detail
    assert "a-model" in find(config, "models").detail
    assert examine(config).verdict == "This machine serves jobs."
    assert "takes jobs" in find(config, "node").detail
    status["paused"] = "too hot"
    assert "too hot" in find(config, "node").detail


def test_models_that_do_not_stand_back_are_told(tmp_path: Path) -> None:
    assert "nice 5" in find(make_config(tmp_path), "priority").detail
    assert find(make_config(tmp_path), "priority").advice == ""
    assert "worker_nice" in find(make_config(tmp_path, worker_nice=0), "priority").advice


def test_a_key_in_an_open_folder_is_told(tmp_path: Path) -> None:
    key = create_key_file(tmp_path / "node.key")
    tmp_path.chmod(0o755)
    finding = find(make_config(tmp_path), "key")
    assert finding.works
    assert key.peer_id in finding.detail
    assert "chmod 700" in finding.advice
    tmp_path.chmod(0o700)
    assert not find(make_config(tmp_path), "key").advice


def test_isolation_that_does_not_hold_is_a_reason_not_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(make_config(tmp_path), "isolation").works
    monkeypatch.setattr(doctor, "probe_isolation", lambda devices: BROKEN)
    finding = find(make_config(tmp_path), "isolation")
    assert not finding.works
    assert finding.advice == "allow namespaces"
    assert "no namespaces" in finding.detail


def test_a_port_that_our_own_node_serves_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(place: str) -> None:
        raise PortError(f"{place}: in use", "choose another port")

    monkeypatch.setattr(doctor, "check_port", taken)
    assert find(make_config(tmp_path), "port").advice == "choose another port"
    ours = {"listen": ["/ip4/0.0.0.0/tcp/4101"]}
    monkeypatch.setattr(doctor, "ask_status", lambda _: ours)
    assert find(make_config(tmp_path), "port").works
    elsewhere = make_config(tmp_path, listen=["/ip4/0.0.0.0/tcp/5000"])
    assert not find(elsewhere, "port").works, "another program's port is not our node's"


def test_coordinators_are_dialled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("refused")

    assert "none is listed" in find(make_config(tmp_path), "coordinator").detail
    monkeypatch.setattr("capanode.doctor.socket.create_connection", refuse)
    address = f"/ip4/127.0.0.1/tcp/4100/p2p/{COORDINATOR.peer_id}"
    finding = find(make_config(tmp_path, coordinators=[address]), "coordinator")
    assert "does not answer" in finding.detail
    assert "keeps trying" in finding.advice


def test_a_full_disk_is_a_reason_not_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("capanode.doctor.shutil.disk_usage", lambda _: usage)
    finding = find(make_config(tmp_path / "not-there-yet"), "disk")
    assert not finding.works
    assert "free some space" in finding.advice


def test_the_clock_and_the_gpu_are_no_reason_not_to_serve(tmp_path: Path) -> None:
    subjects = {f.subject for f in examine(make_config(tmp_path)).findings}
    assert {"clock", "gpu", "processor", "memory"} <= subjects
    assert not {"clock", "gpu", "coordinator"} & doctor.ESSENTIAL


def test_a_model_that_is_code_is_a_finding_unless_it_is_allowed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = ModelStore(config.model_store)
    add_model(store, "program", task=Task.TENSOR, architecture="TensorExport")
    found = find(config, "models")
    assert not found.works
    assert "allow_code_models" in found.detail
    assert find(make_config(tmp_path, allow_code_models="yes"), "models").works

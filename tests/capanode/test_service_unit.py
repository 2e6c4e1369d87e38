"""The unit that keeps a node running: what systemd reads of it, and how it gets there and away."""

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capanode.cli import app, service
from capanode.errors import ServiceError
from capanode.service_unit import own_program, unit_path, unit_text
from protocol.programs.keyfile import KeyFileError


def parse(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd minds upper case
    unit.read_string(text)
    return unit


def test_a_node_is_started_again_unless_it_was_drained_or_is_set_up_wrongly() -> None:
    unit = parse(unit_text(["/opt/capanode"], ["--data-dir", "/home/ada/.capanode"], drain_s=30))
    service = unit["Service"]
    assert shlex.split(service["ExecStart"]) == [
        "/opt/capanode",
        "start",
        "--data-dir",
        "/home/ada/.capanode",
    ]
    assert shlex.split(service["ExecReload"])[1:3] == ["config", "reload"]
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]
    assert service["SuccessExitStatus"] == "3"
    assert int(service["TimeoutStopSec"]) > 30
    assert unit["Install"]["WantedBy"] == "default.target"


def test_a_path_reaches_the_program_as_it_is() -> None:
    folder = '/home/a b/50% "x" $HOME\\y'
    text = unit_text(["/opt/capanode"], ["--data-dir", folder], drain_s=0)
    quoted = parse(text)["Service"]["ExecStart"].replace("%%", "%").replace("$$", "$")
    assert shlex.split(quoted)[-1] == folder


def test_the_unit_lies_where_systemd_looks(tmp_path: Path) -> None:
    place = "systemd/user/capanode.service"
    assert unit_path({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / place
    assert unit_path({}) == Path("~/.config").expanduser() / place


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "capanode.service"
    path.write_text(unit_text(own_program(), ["--data-dir", str(tmp_path)], drain_s=30))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "capanode.service" not in done.stderr


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A systemctl that does as it is told; what it was told."""
    asked: list[tuple[str, ...]] = []

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, stdout="active\n", stderr="")

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(service, "_run", run)
    return asked


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["service", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stderr + done.stdout


def test_a_service_is_installed_told_and_removed(
    tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    CliRunner().invoke(app, ["init", "--data-dir", str(tmp_path / "node")])
    told = invoke("install", "--data-dir", str(tmp_path / "node"))
    assert "journalctl --user" in told
    assert asked == [("daemon-reload",), ("enable", "--now", "capanode.service")]
    unit = parse(unit_path().read_text())
    assert shlex.split(unit["Service"]["ExecStart"])[-1] == str(tmp_path / "node")
    assert '"active": "active"' in invoke("status", "--json")
    invoke("uninstall")
    assert ("disable", "--now", "capanode.service") in asked
    assert not unit_path().exists()
    with pytest.raises(ServiceError, match="there is no"):
        invoke("uninstall")


def test_a_node_that_was_not_set_up_becomes_no_service(
    tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    with pytest.raises(KeyFileError, match="init"):
        invoke("install", "--data-dir", str(tmp_path / "node"))
    assert not asked
    assert not unit_path().exists()


def test_a_machine_without_systemd_is_told(
    tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    CliRunner().invoke(app, ["init", "--data-dir", str(tmp_path / "node")])
    monkeypatch.setattr(service, "_run", lambda *_: None)
    assert "no systemd" in invoke("install", "--data-dir", str(tmp_path / "node"))
    assert '"active": "unknown"' in invoke("status", "--json")

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capanode.cli import app
from capanode.errors import SetupError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the driver's place, which tells of an RTX 3090 under a driver of CUDA 12."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '570.133.20, 8.6, NVIDIA GeForce RTX 3090'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return program


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that only writes down what it is asked to run; fails on the word `broken`."""
    log = tmp_path / "log"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n[ ! -e {tmp_path}/broken ]\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return log


def test_a_dry_run_says_what_would_come_and_installs_nothing(driver: Path, pip: Path) -> None:
    result = CliRunner().invoke(app, ["setup", "--dry-run", "--json"])
    plan = json.loads(result.stdout)
    assert plan["build"] == "cu126"
    assert plan["download_gb"] > 1
    assert "570.133.20" in plan["reason"]
    assert plan["commands"][0][1:4] == ["-m", "pip", "install"]
    assert not pip.exists()


def test_the_build_and_its_size_are_said_before_anything_is_installed(
    driver: Path, pip: Path
) -> None:
    result = CliRunner().invoke(app, ["setup"], input="n\n")
    assert "cu126" in result.stderr
    assert "GB to download" in result.stderr
    assert not pip.exists()


def test_torch_comes_before_the_parts_that_would_bring_another_build(
    driver: Path, pip: Path
) -> None:
    result = CliRunner().invoke(app, ["setup", "--yes"])
    assert result.exit_code == 0, result.output
    torch, node = pip.read_text().splitlines()
    assert torch.endswith("torch>=2.9,<3")
    assert "/cu126 " in torch
    assert "capacloud[node]==" in node


def test_a_pip_that_fails_ends_the_command(driver: Path, pip: Path) -> None:
    pip.with_name("broken").touch()
    result = CliRunner().invoke(app, ["setup", "--yes"])
    assert isinstance(result.exception, SetupError)
    assert len(pip.read_text().splitlines()) == 1


def test_a_driver_that_hangs_or_fails_counts_as_none(driver: Path, pip: Path) -> None:
    driver.write_text("#!/bin/sh\nexit 9\n")
    result = CliRunner().invoke(app, ["setup", "--dry-run", "--json"])
    assert json.loads(result.stdout)["build"] == "cpu"

"""What `.ci/system-packages` does about programs that are not here."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "system-packages"
HERE = ("ip", "unshare")
NEEDED = ("bash", "env", "id", "tail", "timeout")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs, in which nft is missing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(f"/usr/bin/{name}")
    for name in HERE:
        add(folder, name, "")
    return folder


def add(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def run(programs: Path, *, uid: int = 0) -> str:
    add(programs, "id", f"echo {uid}")
    environment = {**os.environ, "PATH": str(programs)}
    done = subprocess.run(
        ["/usr/bin/env", "bash", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


def test_nothing_is_done_or_said_where_all_is_there(programs: Path) -> None:
    add(programs, "nft", "")
    add(programs, "apt-get", "echo called")
    assert run(programs) == ""


def test_what_is_missing_is_installed_where_that_is_allowed(programs: Path, tmp_path: Path) -> None:
    add(programs, "apt-get", f'echo "$@" >>{tmp_path}/asked')
    assert run(programs) == "installing nftables\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-qq update", "-qq install --yes --no-install-recommends nftables"]


def test_what_stays_missing_is_named_and_ends_nothing(programs: Path) -> None:
    assert "missing: nft; " in run(programs)
    add(programs, "apt-get", "echo no network; exit 100")
    assert "missing: nft; " in run(programs, uid=1_000)
    told = run(programs)
    assert "no network" in told
    assert "As root: apt-get install nftables" in told

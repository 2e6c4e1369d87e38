"""What `make dist` builds, installed where nothing of this checkout is."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from capanode.config import NodeConfig
from capanode.torch_build import CPU, CUDA_BUILDS
from tests.test_layering import ALLOWED, ROOT

pytestmark = pytest.mark.slow


def tracked(*places: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tracked files alone: what else lies in a checkout must not be needed."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert inside == {name for name in tracked(*ALLOWED) if (ROOT / name).exists()}


def test_the_image_has_the_settings_that_the_program_knows() -> None:
    """Docker is not at hand where the tests run; what the file says about us can be checked."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    environment = dict(line.removeprefix("ENV ").split("=") for line in lines if "ENV " in line)
    config = NodeConfig.resolve(env=environment)
    assert {f"environment {name}" for name in environment} <= set(config.sources.values())
    indexes = {build.index for build in (CPU, *CUDA_BUILDS)}
    assert {
        line.split("=", 1)[1] for line in lines if line.startswith("ARG TORCH_INDEX=")
    } <= indexes


def test_the_sdist_is_enough_to_build_the_wheel(dist: Path) -> None:
    """`build` makes the wheel from the sdist, so that the test above holds for both; what a reader
    of the source wants is in it, too."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names


def test_the_programs_run_where_only_the_wheel_and_its_dependencies_are(
    dist: Path, tmp_path: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # The dependencies, which the checkout's environment has. Its own link to the checkout is a .pth
    # file, which only the interpreter that owns the folder reads.
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def output(*command: str) -> str:
        program = [str(python.with_name(command[0])), *command[1:]]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = output("python", "-c", "import capanode, sim; print(capanode.__file__, sim.__file__)")
    assert all(path.startswith(str(site)) for path in where.split())
    assert output("capanode", "version").strip() in wheel.name
    assert "smollm2-135m-instruct" in output(
        "capanode", "models", "list", "--data-dir", str(tmp_path / "node"), "--json"
    )
    assert "accounts" in output("coordinator", "--help")
    assert "batch" in output("capacloud", "--help")
    # The ledger's migrations come along, and run.
    data = str(tmp_path / "market")
    assert "demo" in output("coordinator", "accounts", "create", "demo", "--data-dir", data)

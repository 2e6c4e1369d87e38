"""A confined program's folder on the host, where there are no mounts: packages from different
places meet in it as links, and the scratch folder lies in it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "capanode-worker-"


@dataclass(frozen=True, slots=True)
class HostFolder:
    root: Path
    code_dir: Path
    scratch_dir: Path


def make_host_folder(packages: Iterable[str], owner: int | None) -> HostFolder:
    """`owner` is who may write to the scratch folder, None for ourselves. Raises OSError."""
    _remove_orphans()
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        root.chmod(0o755)
        code_dir, scratch_dir = root / "code", root / "scratch"
        code_dir.mkdir(mode=0o755)
        for package in packages:
            (code_dir / Path(package).name).symlink_to(package)
        scratch_dir.mkdir(mode=0o700)
        if owner is not None:
            os.chown(scratch_dir, owner, owner)
    except OSError:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return HostFolder(root, code_dir, scratch_dir)


def _remove_orphans() -> None:
    """What a node that was killed could not remove; its pid is in the name."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)

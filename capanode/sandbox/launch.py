"""The step between the node and a confined program where bwrap alone is not enough: it runs as the
node's user, opens the way to what is needed, drops root, confines itself where there is no bwrap,
and becomes the program.

Runs as `python -I -S` in its own process: forking and then doing this in the node, which has
threads, would not be safe. Standard library only.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from capanode.sandbox.kernel import load_filter
from capanode.sandbox.landlock import LandlockUnavailable, restrict_files
from capanode.sandbox.privileges import die_with_parent, drop_privileges, open_paths
from capanode.sandbox.seccomp import UnsupportedArchitecture, build_filter

# What a shell says for a command that was found but could not be run.
EXIT_NOT_LAUNCHED = 126

# CUDA's driver names its threads, in `comm`: where it may not, cuInit fails with error 304.
_OWN_THREADS = ("/proc/self/task",)


@dataclass(frozen=True, slots=True)
class FileRules:
    """For the tier without namespaces; see `landlock.restrict_files`. `trial_filter` is hex."""

    readable: tuple[str, ...]
    writable: tuple[str, ...]
    devices: tuple[str, ...]
    gpu: bool
    trial_filter: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """Travels as JSON to the launcher. `reachable` counts only with `user_id`, which is the user
    to become; None where the node is not root."""

    parent_pid: int
    user_id: int | None
    reachable: tuple[str, ...]
    file_rules: FileRules | None
    working_dir: str
    command: tuple[str, ...]
    environment: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def parse_launch(text: str) -> Launch:
    fields = json.loads(text)
    rules = fields.pop("file_rules")
    return Launch(
        **_with_tuples(fields),
        file_rules=None if rules is None else FileRules(**_with_tuples(rules)),
    )


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


def launch(plan: Launch) -> None:
    """Become the program. Returns only by raising."""
    if plan.user_id is not None:
        # A container's root may not mount. Then the paths must be open as they are; if they are
        # not, the program's own start fails and says so.
        with contextlib.suppress(PermissionError):
            rules = plan.file_rules
            open_paths(plan.reachable, () if rules is None else rules.writable)
        drop_privileges(plan.user_id)
    die_with_parent(plan.parent_pid)
    os.chdir(plan.working_dir)
    if plan.file_rules is not None:
        rules = plan.file_rules
        restrict_files(
            readable=rules.readable,
            writable=rules.writable,
            devices=rules.devices,
            changeable=_OWN_THREADS if rules.gpu else (),
        )
        trial = bytes.fromhex(rules.trial_filter)
        load_filter(trial or build_filter(gpu=rules.gpu, own_pid=os.getpid()))
    os.execve(plan.command[0], plan.command, dict(plan.environment))  # noqa: S606 - no shell wanted


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as file:
        plan = parse_launch(file.read())
    try:
        launch(plan)
    except (OSError, LandlockUnavailable, UnsupportedArchitecture) as error:
        sys.stderr.write(f"the sandbox could not be started: {error}\n")
        os._exit(EXIT_NOT_LAUNCHED)

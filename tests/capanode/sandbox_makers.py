"""Sandboxes, programs and users that tests of the sandbox share."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import tests
from capanode.sandbox.bwrap import bwrap_candidates
from capanode.sandbox.landlock import VERSION_MIN, landlock_version
from capanode.sandbox.launch import Launch
from capanode.sandbox.limits import Limits, limits_for_model
from capanode.sandbox.probe import probe_sandbox
from capanode.sandbox.spawn import Program, Sandbox
from capanode.sandbox.view import own_packages
from protocol.messages import IsolationTier

REPOSITORY = Path(tests.__file__ or "").parent.parent
ANSWER_TIMEOUT_S = 30.0

# Another user than the worker's own, so that tests see the ordinary path from end to end.
ORDINARY_USER_ID = 232_072

TEST_PACKAGES = (*own_packages(), REPOSITORY / "tests")
SMALL_LIMITS = limits_for_model(0)


@cache
def working_sandboxes() -> tuple[Sandbox, ...]:
    """Every way to confine that this machine offers; the tests try each."""
    candidates = [Sandbox(IsolationTier.BWRAP, path) for path in bwrap_candidates()]
    if landlock_version() >= VERSION_MIN:
        candidates.append(Sandbox(IsolationTier.LANDLOCK))
    return tuple(box for box in candidates if all(fact.ok for fact in probe_sandbox(box)))


def sandbox_name(sandbox: Sandbox) -> str:
    return sandbox.tier if sandbox.bwrap is None else f"{sandbox.tier}-{sandbox.bwrap.parts[1]}"


@contextmanager
def model_folder(behaviour: str = "") -> Iterator[Path]:
    """A model that every user may read, outside of any folder that is closed to others."""
    with tempfile.TemporaryDirectory(prefix="capanode-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "behaviour").write_text(behaviour)
        yield folder


def ask(sandbox: Sandbox, model_dir: Path, limits: Limits = SMALL_LIMITS, **order: object) -> Any:
    """What `escape_attempts` answers in this sandbox; None if it ended without an answer."""
    return ask_program(sandbox, escape_program(model_dir, limits, **order))


def ask_program(sandbox: Sandbox, program: Program) -> Any:
    process = sandbox.spawn(program)
    try:
        process.channel.settimeout(ANSWER_TIMEOUT_S)
        answer = b""
        while not answer.endswith(b"\n"):
            part = process.channel.recv(65_536)
            if not part:
                return None
            answer += part
        return json.loads(answer)
    finally:
        process.kill()
        process.popen.wait()
        process.close()


def escape_program(model_dir: Path, limits: Limits, **order: object) -> Program:
    return Program(
        "tests.capanode.escape_attempts",
        limits=limits,
        arguments=(json.dumps(order),),
        model_dir=model_dir,
        packages=TEST_PACKAGES,
    )


def command_as_ordinary_user(
    arguments: Sequence[str], environment: Mapping[str, str], plan_fd: int
) -> tuple[list[str], bytes]:
    """The command that runs our Python as an ordinary user although we are root, and what it is to
    read from `plan_fd`."""
    plan = Launch(
        parent_pid=os.getpid(),
        user_id=ORDINARY_USER_ID,
        reachable=(sys.base_prefix, sys.prefix, str(REPOSITORY)),
        file_rules=None,
        working_dir=str(REPOSITORY),
        command=(sys.executable, *arguments),
        environment=environment,
    )
    code = "import capanode.sandbox.launch as launch; launch.main()"
    return [sys.executable, "-c", code, str(plan_fd)], plan.to_json().encode()

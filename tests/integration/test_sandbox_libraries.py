"""The libraries that engines are built on work under the filter and the limits."""

import json
from dataclasses import replace

import pytest

from capanode.sandbox.spawn import Sandbox
from tests.capanode.sandbox_makers import (
    SMALL_LIMITS,
    escape_program,
    model_folder,
    sandbox_name,
    working_sandboxes,
)


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", working_sandboxes(), ids=sandbox_name)
def test_libraries_work_confined(sandbox: Sandbox) -> None:
    with model_folder() as model:
        program = replace(
            escape_program(model, SMALL_LIMITS), module="tests.capanode.library_check", threads=2
        )
        process = sandbox.spawn(program)
        try:
            process.channel.settimeout(60)
            outcome = json.loads(process.channel.recv(65_536))
        finally:
            process.kill()
            process.popen.wait()
            process.close()
    assert set(outcome.values()) == {"works"}, outcome

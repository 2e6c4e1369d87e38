"""`python -m sim.bench.mock.node`: a `capanode` whose text models are the mock.

Everything around the engine is the real thing, the sandbox included.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import capanode.workers
import sim
from capanode.cli import main
from capanode.sandbox.view import own_packages
from capanode.tasks import NODE_TASKS, NodeTaskSpec
from capanode.worker.spec import WorkerSpec
from protocol.messages import Task


def mock_node() -> None:
    """Run the program, with another engine in its table."""
    table = cast(dict[Task, NodeTaskSpec], NODE_TASKS)
    table[Task.CAUSAL_LM] = replace(
        table[Task.CAUSAL_LM], engine="sim.bench.mock.engine:MockEngine"
    )
    packages = (*own_packages(), Path(sim.__file__ or "").parent)
    vars(capanode.workers)["WorkerSpec"] = partial(WorkerSpec, packages=packages)
    main()


if __name__ == "__main__":
    mock_node()

"""The confined half of `sim bench gpu`: `start` starts CUDA's driver and says how far it came;
`engine` measures our engine in the worker's own sandbox. Reports one JSON object over its channel.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from capanode.sandbox.cuda_start import start_cuda
from capanode.sandbox.inside import read_surroundings
from capanode.sandbox.limits import apply_limits

# In place of a driver's number: there is no driver here.
NO_DRIVER = -1.0
_DESCRIPTORS_MAX = 1_024


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    what, text = sys.argv[1:3]
    report = started() if what == "start" else _engine(json.loads(text), surroundings.model_dir)
    channel.sendall(json.dumps(report).encode() + b"\n")
    while channel.recv(64):
        pass
    os._exit(0)


def started() -> dict[str, float]:
    """The driver's number, 0 if all of it works, and the descriptors that this took."""
    before = _descriptors()
    try:
        refused = start_cuda()
    except OSError:
        return {"code": NO_DRIVER, "descriptors": 0.0}
    code = 0.0 if refused is None else float(refused.code)
    return {"code": code, "descriptors": float(_descriptors() - before)}


def _descriptors() -> int:
    """Counted by trial: a worker does not see /proc."""
    return sum(map(_is_open, range(_DESCRIPTORS_MAX)))


def _is_open(descriptor: int) -> bool:
    try:
        os.get_inheritable(descriptor)
    except OSError:
        return False
    return True


def _engine(order: dict[str, Any], model_dir: Path) -> dict[str, float]:
    # Only this half needs torch, and the other shows what the driver does without it.
    from capanode.engines.cuda_device import open_cuda  # noqa: PLC0415
    from sim.bench.gpu_engine import Cell, MeasuredModel, load_engine, measure_cell  # noqa: PLC0415
    from sim.bench.random_model import ModelShape  # noqa: PLC0415

    if order["device"] != "cpu":
        failure = open_cuda(None)
        if failure is not None:
            raise RuntimeError(str(failure))
    load = MeasuredModel(
        model_dir, ModelShape(**order["shape"]), order["device"], order["bandwidth"]
    )
    cells = [Cell(*cell) for cell in order["cells"]]
    engine = load_engine(load, cells)
    figures: dict[str, float] = {}
    for cell in cells:
        figures |= measure_cell(engine, load, cell)
    return figures


if __name__ == "__main__":
    main()

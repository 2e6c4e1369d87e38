"""Runs in the sandbox with one GPU before any model is loaded: can torch compute on it? Reports one
JSON object over its channel, `{}` if it can: `python -m capanode.worker.gpu_check`.
"""

import json
import os

from capanode.sandbox.inside import read_surroundings
from capanode.sandbox.limits import apply_limits


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    # Under the limits, and not where its words are read.
    from capanode.engines.cuda_device import open_cuda  # noqa: PLC0415

    failure = open_cuda(None)
    report = {} if failure is None else {"problem": failure.problem, "reason": failure.reason}
    channel.sendall(json.dumps(report).encode() + b"\n")
    # Not by way of CUDA's own clean-up, which may hang on a card that does not work.
    os._exit(0)


if __name__ == "__main__":
    main()

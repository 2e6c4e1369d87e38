"""What the sandbox benchmark runs, confined and bare: small matrix products as in decoding, and a
message to the node after each step. `python -m sim.bench.sandbox_load MODE THREADS`.
"""

import struct
import sys
import time

from capanode.sandbox.inside import read_surroundings
from capanode.sandbox.limits import apply_limits

# One stream through 12 layers of a model with 576 hidden units: 3 to 4 ms a step on one core.
_LAYERS = 12
_HIDDEN, _INNER = 576, 1_536
_STEPS = 8

ROUND = struct.Struct("<dd")
STEP_BYTES = 100


def main() -> None:
    mode, threads = sys.argv[1], int(sys.argv[2])
    surroundings = read_surroundings()
    if mode == "confined":
        apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    if threads == 0:  # Only the start is measured, without torch.
        channel.sendall(b"r")
        return
    import torch  # noqa: PLC0415 - after the limits are in force

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    up = [torch.randn(_HIDDEN, _INNER) for _ in range(_LAYERS)]
    down = [torch.randn(_INNER, _HIDDEN) for _ in range(_LAYERS)]
    channel.sendall(b"r")
    while channel.recv(1):
        wall, cpu = time.perf_counter(), time.process_time()
        state = torch.ones(1, _HIDDEN)
        for _ in range(_STEPS):
            for layer in range(_LAYERS):
                state = torch.softmax(torch.relu(state @ up[layer]) @ down[layer], dim=-1)
            channel.sendall(bytes(STEP_BYTES))
        spent = ROUND.pack(time.perf_counter() - wall, time.process_time() - cpu)
        channel.sendall(spent.rjust(STEP_BYTES, b"\0"))


MESSAGE_BYTES = (_STEPS + 1) * STEP_BYTES

if __name__ == "__main__":
    main()

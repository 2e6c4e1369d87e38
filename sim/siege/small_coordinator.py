"""A coordinator that may have few descriptors, as under a shell's default limit.

`python -m sim.siege.small_coordinator …` takes what `python -m coordinator …` takes.
"""

import resource

from coordinator.cli import main

DESCRIPTORS = 1_024

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    main()

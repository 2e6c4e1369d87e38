"""`python -m sim`: see `sim.cli`."""

import sys

import structlog

from sim.cli import main

if __name__ == "__main__":
    # What our half of a network logs is no part of what a command prints.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    main()

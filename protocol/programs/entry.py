"""The first lines of a program: its imports take longer than most of its commands, and Ctrl-C in
them shall end it without a traceback. This module therefore imports next to nothing."""

import signal
import sys
from importlib import import_module
from typing import NoReturn


def run_program(module: str) -> NoReturn:
    """Import a program's `module` and call its `main`."""
    try:
        # Nothing is open yet that would have to be closed: the signal itself ends the process, as
        # shells expect it. Raised in the midst of an import, the exception would be anything.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        main = import_module(module).main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)

"""How a command of ours ends: in a sentence and an exit code, whatever task it came from."""

import sys
from collections.abc import Callable
from typing import NoReturn

from protocol.errors import CapaError
from protocol.net.serve import leaves


def run_command(command: Callable[[], object], complain: Callable[[str], None]) -> NoReturn:
    """Run a program's command line, then exit: 0 done, 1 failed, 130 interrupted.

    Errors of ours are told by `complain`, each once; a bug keeps its traceback. Wrong usage has
    exited with 2 before it comes here.
    """
    code = 0
    try:
        command()
    except* CapaError as group:
        complain("; ".join(dict.fromkeys(str(error) for error in leaves(group))))
        code = 1
    except* KeyboardInterrupt:
        code = 130
    # Not in there: what leaves an `except*` is put into a group, which ends in a traceback.
    sys.exit(code)

"""The last lock of a program whose sandbox was open at its start: from here on it is confined as
all others are. It cannot be taken back, and nothing that the program started is left outside of it.
"""

import contextlib
import ctypes
import os
import signal

from capanode.sandbox.kernel import syscall
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.seccomp import SECCOMP, SECCOMP_SET_FILTER, SECCOMP_SYNC_THREADS, build_filter


def close_sandbox(opening: SandboxOpening, *, gpu: bool) -> None:
    """Bind all threads of this process to the filter that holds while it serves. Raises OSError;
    nothing may be served then.

    Of a group each process does so itself. Any other program is alone afterwards: whatever it has
    started is ended, since it would go on without the lock.
    """
    if opening is not SandboxOpening.GROUP:
        # As process 1 of the sandbox we are the one that this leaves out.
        assert os.getpid() == 1, "only a sandbox of its own is closed"
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    program = build_filter(gpu=gpu, talks=opening is SandboxOpening.GROUP)

    class Header(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    header = Header(len(program) // 8, program)
    refusing = syscall(SECCOMP, SECCOMP_SET_FILTER, SECCOMP_SYNC_THREADS, ctypes.addressof(header))
    if refusing:
        raise OSError(f"thread {refusing} cannot be bound to the filter")

"""What a process that runs for weeks does about its memory."""

import ctypes
import gc

import trio

TRIM_EVERY_S = 60.0


def settle_garbage_collection() -> None:
    """Exempt what start-up made (modules, schemas, compiled statements) from garbage collection.

    It lives as long as the process. Walking its hundreds of thousands of objects in every full
    collection would stop all jobs for tens of milliseconds, each time for nothing.
    """
    gc.collect()
    gc.freeze()


async def trim_heap_forever() -> None:
    """Give the holes in the C heap back to the system now and then, where the C library is glibc.

    Between objects that live for a minute or a day, holes are left that are too small for what
    comes next: a node with the same objects in use grew by 30 MB an hour.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await trio.sleep(TRIM_EVERY_S)
        trim(0)

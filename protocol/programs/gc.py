"""What a long-running process does once, when it is up."""

import gc


def settle_garbage_collection() -> None:
    """Exempt what start-up made (modules, schemas, compiled statements) from garbage collection.

    It lives as long as the process. Walking its hundreds of thousands of objects in every full
    collection would stop all jobs for tens of milliseconds, each time for nothing.
    """
    gc.collect()
    gc.freeze()

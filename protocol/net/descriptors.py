"""File descriptors: how many this process may have, and how many of them strangers may take.

Every connection is a descriptor, and so are the database's files, log files and listeners. A
process that runs out of them cannot write its books, so strangers never get all of them.
"""

import resource

# Kept for the database, logs, worker pipes, listeners and the interpreter.
RESERVED = 256
# The network's part of what is left; the other half is for HTTP, or for workers on a node.
NETWORK_SHARE = 0.5


def raise_descriptor_limit() -> int:
    """Use what the system allows (the hard limit), and return how many descriptors that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return soft  # Some systems name a hard limit that they do not grant.
    return hard if hard != resource.RLIM_INFINITY else 2**20


def server_descriptors(limit: int) -> int:
    """How many the connections of an HTTP server beside the network may take."""
    return max(16, limit - RESERVED - network_descriptors(limit))


def network_descriptors(limit: int) -> int:
    """How many descriptors the network's connections may take, of so many in all."""
    return max(16, int((limit - RESERVED) * NETWORK_SHARE))

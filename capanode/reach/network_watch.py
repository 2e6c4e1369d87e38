"""Notices that this machine's network has changed: a laptop that moves, a new lease of an address.

The kernel can tell of it, but each system in its own way; to look costs a tenth of a millisecond.
"""

import trio

from capanode.reach.reachability import Reachability
from protocol.net.transport import Transport

LOOK_EVERY_S = 2.0


async def watch_network(
    transport: Transport,
    reach: Reachability,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_EVERY_S)
        if transport.refresh_addresses():
            reach.network_changed()

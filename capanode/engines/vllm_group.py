"""What each process of a model on several cards does beside vLLM's own work: lock itself in."""

from capanode.sandbox.last_lock import close_sandbox
from capanode.sandbox.opening import SandboxOpening


class GroupMember:
    """A `worker_extension_cls` of vLLM: its methods are called in every process of the group."""

    def close_sandbox(self) -> None:
        """After the start: no new program from here on. Raises OSError."""
        close_sandbox(SandboxOpening.GROUP, gpu=True)

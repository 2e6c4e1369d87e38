"""What can go wrong before a worker is confined. Never caught in order to run without a sandbox."""

from protocol.errors import CapaError


class SandboxError(CapaError):
    """A sandbox could not be planned or started; the message says what to do about it."""

"""What goes wrong with a gateway beside its users."""

from coordinator.errors import CoordinatorError


class EdgeError(CoordinatorError):
    """Base class; the message says what to do."""


class KeysError(EdgeError):
    """The gateway's API keys cannot be used, or are missing where they are needed."""

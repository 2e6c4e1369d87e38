"""How open a sandbox is while a program starts, before any client's input is there.

Standard library only: read before the limits are in force.
"""

from enum import StrEnum


class SandboxOpening(StrEnum):
    """`closed` is as confined from its first moment as it will ever be. `start` may run programs
    and use the sandbox's own, empty network until it locks itself in. `group` does the same, and
    its processes go on talking to each other: those of a model on several cards."""

    CLOSED = "closed"
    START = "start"
    GROUP = "group"

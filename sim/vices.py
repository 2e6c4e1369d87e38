"""What is wrong with the bad parties of a world: each kind was seen to cost a market something."""

from enum import StrEnum


class Vice(StrEnum):
    """What is wrong with a node."""

    SILENT = "silent"  # takes jobs and says nothing
    STALLING = "stalling"  # says nothing after three tokens
    DRIPPING = "dripping"  # one token each five seconds
    REFUSING = "refusing"  # is busy for every client
    GARBAGE = "garbage"  # other tokens than the right ones
    FLAPPING = "flapping"  # loses power every three seconds


class Habit(StrEnum):
    """What is wrong with a client."""

    HOARDING = "hoarding"  # leases and never opens
    UNSIGNING = "unsigning"  # takes answers and signs for nothing
    GARBLING = "garbling"  # sends garbage where it should cancel
    REPLAYING = "replaying"  # asks and opens twice with the same signed words
    SQUATTING = "squatting"  # uses the job ids of others

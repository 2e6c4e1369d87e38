"""How a coordinator sees a node, and why the last jobs for its models went elsewhere: bodies of the
control method `standing`.
"""

from dataclasses import dataclass

from protocol.fields import check
from protocol.ids import Digest, is_digest
from protocol.limits import LIST_ITEMS_MAX, NAME_CHARS_MAX, OFFER_MODELS_MAX

# More is as good as any number.
PERCENT_MAX = 100_000


@dataclass(frozen=True, slots=True)
class StandingAsk:
    """Of the node that asks."""


@dataclass(frozen=True, slots=True)
class ReasonCount:
    """`reason` is a word of quotes; it kept the node from so many of the jobs."""

    reason: str
    count: int

    def __post_init__(self) -> None:
        check(0 < len(self.reason) <= NAME_CHARS_MAX, "the reason is empty or too long")
        check(self.count >= 0, "a count is negative")


@dataclass(frozen=True, slots=True)
class ModelStanding:
    """The last `jobs` for one model, judged again for this node as things are now. It was `chosen`
    for some, `reasons` kept it from others, and for `outbid` it fitted and another one cost less or
    was faster: by so many percent in the middle, 0 if that was not the difference."""

    manifest_digest: Digest
    jobs: int
    chosen: int
    reasons: tuple[ReasonCount, ...] = ()
    outbid: int = 0
    dearer_percent: int = 0
    slower_percent: int = 0

    def __post_init__(self) -> None:
        check(is_digest(self.manifest_digest), "the manifest digest is not a sha256")
        check(len(self.reasons) <= LIST_ITEMS_MAX, "too many reasons")
        check(min(self.jobs, self.chosen, self.outbid) >= 0, "a count is negative")
        for percent in (self.dearer_percent, self.slower_percent):
            check(0 <= percent <= PERCENT_MAX, "a percentage is out of range")


@dataclass(frozen=True, slots=True)
class StandingReply:
    """`is_known` if an offer of the node is listed; `health` is as in lists of nodes; `is_dialable`
    says whether clients that have to dial it get it."""

    is_known: bool
    health: str = ""
    success_rate: float = 1.0
    is_dialable: bool = True
    models: tuple[ModelStanding, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.health) <= NAME_CHARS_MAX, "the health is too long")
        check(len(self.models) <= OFFER_MODELS_MAX, "too many models")

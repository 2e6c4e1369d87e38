"""What each client's leases came to, and what that entitles it to.

A client costs the market something when it takes seats and does not open them, and when it takes
answers and does not sign for them. So strangers get few unopened leases at a time and small
windows; what they pay for, and sign for, earns them more. The standing is told to nodes in the
lease: 0 is a bad record, 1 a stranger, 9 the best.

Records fade only as new jobs follow. After a restart they are made again from the leases that ended
lately (`restoring`), so that a client with a bad record does not begin anew.
"""

from collections import OrderedDict
from dataclasses import dataclass

from protocol.ids import PeerId
from protocol.limits import WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN

STRANGER = 1
STANDING_MAX = 9
# The record of one more client costs about 200 bytes; the one longest unheard of goes first.
CLIENTS_MAX = 50_000

# A stranger may have so many leases that no node has reported as opened; the number doubles with
# every step of its standing. A client with a bad record gets them one at a time.
UNOPENED_MAX_OF_STRANGERS = 8
# What a client has to pay for the first step up, in nano-credits: about a thousand tokens at the
# price of a small model. Every further step takes four times as much, so that a record costs more
# in fees than what a wider window lets its owner take.
FIRST_STEP_NANO = 100_000
# So many of the last jobs are looked at for leases left unopened and answers left unsigned.
_HISTORY = 64
# Beyond this share of them a record is bad, whatever was paid; of fewer, one mishap is no habit.
_BAD_SHARE = 0.25
_BAD_MIN = 3


@dataclass(slots=True)
class ClientRecord:
    """`opened` and `signed` went well; `unopened` and `unsigned` did not. All are recent.
    `is_suspect` if it differs with many nodes about what it got (`tails`)."""

    paid_nano: int = 0
    signed: float = 0.0
    unsigned: float = 0.0
    opened: float = 0.0
    unopened: float = 0.0
    is_suspect: bool = False

    def note_opened(self, *, is_opened: bool) -> None:
        self.opened, self.unopened = _counted(self.opened, self.unopened, is_good=is_opened)

    def note_settled(self, paid_nano: int, *, is_signed: bool) -> None:
        """Of an answer that cost something."""
        self.signed, self.unsigned = _counted(self.signed, self.unsigned, is_good=is_signed)
        if is_signed:
            self.paid_nano += paid_nano

    def note_signed_late(self, paid_nano: int) -> None:
        """It has signed after all for an answer that was counted as unsigned."""
        self.signed, self.unsigned = self.signed + 1.0, max(self.unsigned - 1.0, 0.0)
        self.paid_nano += paid_nano

    @property
    def is_bad(self) -> bool:
        return bool(self.complaint)

    @property
    def complaint(self) -> str:
        """Why the record is bad, in words that follow "because"; empty if it is not."""
        if self.is_suspect:
            return "it differs with many nodes about what they delivered"
        if _are_many(self.signed, self.unsigned):
            return f"it did not sign for {self.unsigned:.0f} of its last answers"
        if _are_many(self.opened, self.unopened):
            return f"it did not open {self.unopened:.0f} of its last leases"
        return ""

    @property
    def standing(self) -> int:
        """From 0 to STANDING_MAX."""
        if self.is_bad:
            return 0
        steps, step_nano = 0, FIRST_STEP_NANO
        while steps < STANDING_MAX - STRANGER and self.paid_nano >= step_nano:
            steps, step_nano = steps + 1, 4 * step_nano
        return STRANGER + steps

    @property
    def unopened_max(self) -> int:
        """How many leases may be open that no node has reported as opened."""
        if not self.standing:
            return 1
        return UNOPENED_MAX_OF_STRANGERS << (self.standing - STRANGER)


def _are_many(good: float, bad: float) -> bool:
    return bad >= _BAD_MIN and bad > _BAD_SHARE * (good + bad)


def _counted(good: float, bad: float, *, is_good: bool) -> tuple[float, float]:
    """One more of either, in a window that forgets gradually."""
    keep = 1.0 - 1.0 / _HISTORY
    return good * keep + is_good, bad * keep + (not is_good)


@dataclass(frozen=True, slots=True)
class WindowRange:
    """How much output may lack a client's signature: from a stranger's window to the widest."""

    first_tokens: int = WINDOW_TOKENS_MIN
    widest_tokens: int = WINDOW_TOKENS_MAX

    def of(self, record: ClientRecord) -> int:
        """The window of a client with this record; doubles every two steps of its standing."""
        doublings = max(record.standing - STRANGER, 0) // 2
        return min(self.first_tokens << doublings, self.widest_tokens)


ALL_WINDOWS = WindowRange()


class Clients:
    """The records of clients seen lately, and which windows they get."""

    def __init__(
        self, windows: WindowRange = ALL_WINDOWS, *, clients_max: int = CLIENTS_MAX
    ) -> None:
        self.windows = windows
        self._clients_max = clients_max
        self._records: OrderedDict[PeerId, ClientRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def look_up(self, client: PeerId) -> ClientRecord:
        """Its record, or a stranger's. Writing to it is only kept after `keep`."""
        return self._records.get(client) or ClientRecord()

    def keep(self, client: PeerId) -> ClientRecord:
        """Its record, to write to; call it for clients that have paid for something, or that held
        money at least, so that keys that cost nothing push no one out."""
        record = self._records.pop(client, None) or ClientRecord()
        self._records[client] = record
        if len(self._records) > self._clients_max:
            self._records.popitem(last=False)
        return record

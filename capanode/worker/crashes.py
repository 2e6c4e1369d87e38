"""Whose doing it is when a worker ends while it runs jobs: an input's, or the model's.

Only a job that was alone in the worker can be convicted. What was learned is bounded and forgotten
with time; the coordinator and its reputations know nothing of it.
"""

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NewType

InputDigest = NewType("InputDigest", bytes)

# Inputs that are refused if they come again: an hour's worth for a worker that restarts in 4 s.
INPUTS_MAX = 1_024
# Clients whose inputs ended the worker so often in so long a time are refused whatever they send.
STRIKES_MAX = 3
STRIKES_WITHIN_S = 600.0
CLIENTS_MAX = 256
# So many clients' jobs in a row, none of any client ending well between them, are no accident: the
# third's is the model's own fault.
CULPRITS_IN_A_ROW_MAX = 2


def digest_of(payload: bytes) -> InputDigest:
    return InputDigest(hashlib.sha256(payload).digest())


@dataclass(frozen=True, slots=True)
class Culprit:
    """A job that was alone in the worker when it ended. `client` is empty for the node's own."""

    client: str
    digest: InputDigest


class CrashJournal:
    """What one model's worker was ended by."""

    def __init__(self) -> None:
        self._inputs: OrderedDict[InputDigest, None] = OrderedDict()
        self._strikes: OrderedDict[str, deque[float]] = OrderedDict()
        self._in_a_row: set[str] = set()

    def has_met(self, payload: bytes) -> bool:
        """True if this input has ended the worker before."""
        return bool(self._inputs) and digest_of(payload) in self._inputs

    def is_barred(self, client: str, now_s: float) -> bool:
        """True if this client's inputs have ended the worker too often of late."""
        times = self._strikes.get(client)
        if times is None:
            return False
        while times and now_s - times[0] > STRIKES_WITHIN_S:
            times.popleft()
        if not times:
            del self._strikes[client]
        return len(times) >= STRIKES_MAX

    def job_ended_well(self) -> None:
        """The model works: what fails from now on fails by itself."""
        self._in_a_row.clear()

    def convict(self, culprit: Culprit, now_s: float) -> bool:
        """Judge a job that was alone when the worker ended; False if the model is to blame."""
        if not culprit.client:
            return False
        if len(self._in_a_row - {culprit.client}) >= CULPRITS_IN_A_ROW_MAX:
            return False
        self._in_a_row.add(culprit.client)
        self._inputs[culprit.digest] = None
        self._inputs.move_to_end(culprit.digest)
        if len(self._inputs) > INPUTS_MAX:
            self._inputs.popitem(last=False)
        times = self._strikes.setdefault(culprit.client, deque(maxlen=STRIKES_MAX))
        times.append(now_s)
        self._strikes.move_to_end(culprit.client)
        if len(self._strikes) > CLIENTS_MAX:
            self._strikes.popitem(last=False)
        return True

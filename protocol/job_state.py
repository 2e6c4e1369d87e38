"""The life of a job as one table. Client, node, coordinator and simulator are judged by it alike.

Each party sees a part of the life: a coordinator sees leases and receipts, a node sees openings and
output. The table holds the union, and an event that it does not list for a state is a mistake of
its sender.

    requested → leased → opened → queued → running → ended → settled
                  ↑        └────────┴────────┴──→ refused, lost ──→ leased again, or expired
                  └────────────────────────────────────┘
"""

from enum import StrEnum

from protocol.endings import FINISH_RULES, Finish, LeaseState
from protocol.errors import Code, RemoteProtocolError


class JobState(StrEnum):
    REQUESTED = "requested"  # signed by the client, nothing held
    LEASED = "leased"  # funds held, a node named
    OPENED = "opened"  # request, lease and payload are at the node
    QUEUED = "queued"  # admitted, perhaps waiting for a slot
    RUNNING = "running"  # output has arrived
    CANCELLING = "cancelling"  # the client has had enough; output in flight may still arrive
    ENDED = "ended"  # a receipt says what was delivered
    SETTLED = "settled"  # the hold became a payment and a release
    REFUSED = "refused"  # this node will not run it; another may
    LOST = "lost"  # this node fell silent; a late receipt may still come
    EXPIRED = "expired"  # time ran out, the hold is released


class JobEvent(StrEnum):
    LEASE = "lease"
    OPEN = "open"
    ACCEPT = "accept"
    OUTPUT = "output"
    CANCEL = "cancel"
    RECEIPT = "receipt"
    REFUSE = "refuse"
    LOSE = "lose"
    EXPIRE = "expire"
    SETTLE = "settle"


_S, _E = JobState, JobEvent
_AT_NODE = (_S.OPENED, _S.QUEUED, _S.RUNNING, _S.CANCELLING)

TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (_S.REQUESTED, _E.LEASE): _S.LEASED,
    (_S.REFUSED, _E.LEASE): _S.LEASED,
    (_S.LOST, _E.LEASE): _S.LEASED,
    (_S.LEASED, _E.OPEN): _S.OPENED,
    (_S.OPENED, _E.ACCEPT): _S.QUEUED,
    (_S.QUEUED, _E.OUTPUT): _S.RUNNING,
    (_S.RUNNING, _E.OUTPUT): _S.RUNNING,
    (_S.CANCELLING, _E.ACCEPT): _S.CANCELLING,
    (_S.CANCELLING, _E.OUTPUT): _S.CANCELLING,
    **{(state, _E.CANCEL): _S.CANCELLING for state in _AT_NODE},
    # A coordinator goes straight from lease to receipt; a lost job's receipt is still a receipt.
    **{(state, _E.RECEIPT): _S.ENDED for state in (_S.LEASED, _S.LOST, *_AT_NODE)},
    **{(state, _E.REFUSE): _S.REFUSED for state in (_S.REQUESTED, _S.LEASED, *_AT_NODE)},
    **{(state, _E.LOSE): _S.LOST for state in (_S.LEASED, *_AT_NODE)},
    **{
        (state, _E.EXPIRE): _S.EXPIRED
        for state in (_S.REQUESTED, _S.LEASED, _S.REFUSED, _S.LOST, *_AT_NODE)
    },
    (_S.ENDED, _E.SETTLE): _S.SETTLED,
}


def next_state(state: JobState, event: JobEvent) -> JobState:
    """Raises RemoteProtocolError (UNEXPECTED_FRAME) if the event is not legal in this state."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise RemoteProtocolError(
            f"{event.value} is not possible for a job that is {state.value}",
            code=Code.UNEXPECTED_FRAME,
        )
    return after


_BY_LEASE = {
    LeaseState.SETTLED: JobState.SETTLED,
    LeaseState.RELEASED: JobState.REFUSED,
    LeaseState.EXPIRED: JobState.EXPIRED,
}


def state_after_lease(lease: LeaseState, finish: Finish | None) -> JobState:
    """What a job is when a lease of it has ended, with a receipt of this finish or without one."""
    if finish is not None and not FINISH_RULES[finish].is_fault:
        return JobState.SETTLED  # A job may be complete and cost nothing.
    return _BY_LEASE[lease]

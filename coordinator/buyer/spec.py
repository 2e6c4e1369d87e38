"""What a buyer asks for."""

from dataclasses import dataclass
from enum import StrEnum

from coordinator.buyer.job_name import JobName
from protocol.grants import Payer
from protocol.ids import JobId
from protocol.messages import NO_CONSTRAINTS, Constraints, Objective, Task
from protocol.payload import JobInput
from protocol.pricing import Units

# The longest that a job may take if its buyer says nothing: most answers take seconds.
DEADLINE_S = 120.0


class Continuation(StrEnum):
    """What follows when a node fails in the middle of an answer."""

    CONTINUE = "continue"  # another node goes on from the last token that was delivered
    RESTART = "restart"  # another node begins anew, if no part of the answer was shown yet
    OFF = "off"  # the failure is told


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run, and what it may cost. `units_expected` guides matching only; `payer` is
    whose budget the job counts against, where the coordinator is in the same process; `job_id` is
    for a buyer that may ask again for the same job. An answer that `is_shown_whole` is kept from
    its reader until all of it is there. A job with a `name` has its id, which may become that of a
    lease that was taken ahead."""

    model: str
    task: Task
    job_input: JobInput
    units_max: Units
    units_expected: Units
    objective: Objective = Objective.BALANCED
    constraints: Constraints = NO_CONSTRAINTS
    deadline_s: float = DEADLINE_S
    payer: Payer | None = None
    continuation: Continuation = Continuation.CONTINUE
    is_shown_whole: bool = False
    hedge: bool = False
    is_batch: bool = False
    job_id: JobId | None = None
    name: JobName | None = None
    # A name of the user's own: what has the same one goes to the same node where it can.
    session: str = ""

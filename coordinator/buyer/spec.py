"""What a buyer asks for."""

from dataclasses import dataclass

from protocol.grants import Payer
from protocol.messages import NO_CONSTRAINTS, Constraints, Objective, Task
from protocol.payload import JobInput
from protocol.pricing import Units


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run, and what it may cost. `units_expected` guides matching only; `payer` is
    whose budget the job counts against, where the coordinator is in the same process."""

    model: str
    task: Task
    job_input: JobInput
    units_max: Units
    units_expected: Units
    objective: Objective = Objective.BALANCED
    constraints: Constraints = NO_CONSTRAINTS
    deadline_s: float = 120.0
    payer: Payer | None = None

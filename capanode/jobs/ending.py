"""Why a job ended, and what the outside is told of it."""

from dataclasses import dataclass

from protocol.endings import Finish
from protocol.errors import Code, RemoteProtocolError

# Output that is held back waits this long for the client to sign for what it has.
SIGN_WITHIN_S = 30.0

# What the outside is told of our own failures; the worker's words stay in our log.
_OUR_FAILURES = {
    Code.INTERNAL: "the node failed to run the job",
    Code.WORKER_CRASHED: "the model's process ended; it is being started again",
    Code.WORKER_HUNG: "the model's process stopped answering; it is being started again",
    Code.OUT_OF_MEMORY: "the model's process ran out of memory; it is being started again",
}


@dataclass(frozen=True, slots=True)
class JobEnding:
    """Why a job ended. `code` is None when it ended well, or as its client wished."""

    finish: Finish
    code: Code | None = None
    message: str = ""
    retry_after_ms: int | None = None

    @classmethod
    def of_error(cls, error: RemoteProtocolError, finish: Finish = Finish.FAILED) -> "JobEnding":
        return cls(finish, error.code, str(error), error.retry_after_ms)

    def before_acceptance(self) -> "JobEnding":
        """A job that nothing was done for is refused, and free."""
        code = self.code or (Code.CANCELLED if self.finish is Finish.CANCELLED else None)
        return JobEnding(Finish.REFUSED, code, self.message, self.retry_after_ms)

    @property
    def is_failure(self) -> bool:
        """An error of any kind. A client that cancelled wants the receipt, not an error."""
        return self.code not in (None, Code.CANCELLED)

    @property
    def public_message(self) -> str:
        return self.message if self.code is None else _OUR_FAILURES.get(self.code, self.message)


DRAINED = JobEnding(Finish.FAILED, Code.DRAINING, "this node is shutting down")
LATE = JobEnding(Finish.FAILED, Code.DEADLINE_EXCEEDED, "the deadline has passed")
# Output that is held back waited for the client to sign for what it has.
UNSIGNED = JobEnding(
    Finish.CANCELLED,
    Code.UNSIGNED,
    f"the client signed for no output for {SIGN_WITHIN_S:g} s",
)
# What a job ends with that a bug ended: the client learns that much.
UNEXPECTED = JobEnding(Finish.FAILED, Code.INTERNAL, "the job ended unexpectedly")


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that did not end well, for `capanode status`."""

    at_ms: int
    job_id: str
    code: Code
    message: str

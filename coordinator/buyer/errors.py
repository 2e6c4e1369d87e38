"""How a purchase fails."""

from protocol.errors import CapaError, Code
from protocol.ids import JobId


class JobFailed(CapaError):
    """A job has no answer, or only a part of one if `delivered`, for which at most `amount_nano` is
    charged. `is_breach` says that its node
    broke the protocol: `code` names how, and another node may well keep it. `job_id` is None if it
    failed before it had one."""

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        retry_after_ms: int | None = None,
        delivered: bool = False,
        amount_nano: int = 0,
        is_breach: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.is_breach = is_breach
        self.retry_after_ms = retry_after_ms
        self.delivered = delivered
        self.amount_nano = amount_nano
        self.job_id: JobId | None = None

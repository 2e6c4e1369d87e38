"""How much the worker may say of one job, counted by the node.

Follows from what the job was started with and not from what the worker says, so that all that a
worker can make its node do is bounded by the jobs that the node gave it.
"""

import hashlib
from dataclasses import dataclass, replace

from capanode.engines.base import Produced
from capanode.worker.frames import WorkerProtocolError
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.limits import OUTPUT_BYTES_MAX, TOKENS_MAX
from protocol.payload import JobInput

# A token may be told in two events (its id, and later the text that was held back). What comes
# beside tokens: the last of the held text, the pieces of an answer without tokens, the scores of a
# prompt in blocks of 48 KiB.
_EVENTS_PER_TOKEN = 2
_EVENTS_BESIDE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class RunTerms:
    """What the node knows of a job beside its payload. `log_id` is what the worker's log calls it,
    `client` whose input it is, and
    `seed` what its answer is drawn from if the payload names none."""

    log_id: str = ""
    client: str = ""
    output_tokens_max: int = TOKENS_MAX
    seed: int = 0

    @property
    def events_max(self) -> int:
        """Pieces of an answer."""
        return _EVENTS_PER_TOKEN * self.output_tokens_max + _EVENTS_BESIDE_TOKENS


DEFAULT_TERMS = RunTerms()


def settle_input(
    job_input: JobInput, *, output_tokens_max: int, seed: int | None = None, client: str = ""
) -> JobInput:
    """The input with its answer cut to what was leased (it ends with `length` there), with a seed
    if it brings none, and with a `cache_salt` that is only this client's unless it shares.

    Raises RemoteProtocolError if a text is asked for and none was leased.
    """
    if not isinstance(job_input, GenerationInput) or job_input.tokenizes_only:
        return job_input
    if not output_tokens_max:
        raise RemoteProtocolError("no output was leased", code=Code.INVALID_INPUT)
    return replace(
        job_input,
        max_tokens=min(job_input.max_tokens, output_tokens_max),
        seed=seed if job_input.seed is None else job_input.seed,
        cache_salt=_salt_of(job_input, client),
    )


def _salt_of(job_input: GenerationInput, client: str) -> str:
    """Two inputs have one salt only if they may learn of each other. Hashed: it has to stay within
    what an input may hold."""
    owner = "shared" if job_input.shares_cache else f"client {client}"
    return hashlib.sha256(f"{owner}\0{job_input.cache_salt}".encode()).hexdigest()


class Allowance:
    """Counts one job's answer."""

    def __init__(self, terms: RunTerms) -> None:
        self._tokens_max = terms.output_tokens_max
        self.tokens = 0
        self.events_left = terms.events_max
        self._bytes_left = OUTPUT_BYTES_MAX

    def take(self, event: Produced) -> None:
        """Raises WorkerProtocolError if the job said more than it may."""
        size = len(event.text) + len(event.data)
        if not size and not event.token_ids:
            raise WorkerProtocolError("a piece of an answer is empty")
        self.tokens += len(event.token_ids)
        self.events_left -= 1
        self._bytes_left -= size
        if self.tokens > self._tokens_max:
            raise WorkerProtocolError(f"a job answered with more than {self._tokens_max} tokens")
        if self.events_left < 0:
            raise WorkerProtocolError("a job answered in more pieces than its tokens allow")
        if self._bytes_left < 0:
            raise WorkerProtocolError(f"a job answered with more than {OUTPUT_BYTES_MAX} bytes")

"""What the node tells its worker."""

from dataclasses import dataclass
from typing import Any

from capanode.worker.frames import Kind, WorkerProtocolError, make_frame
from protocol.limits import TOKENS_MAX


@dataclass(frozen=True, slots=True)
class Start:
    """`job_id` is this run of a job, and not used twice at once; `log_id` is what logs call it. The
    answer ends after `output_tokens_max` tokens, whatever the payload asks for, and is drawn from
    `seed` if the payload names none. `client` is the same for all jobs of a client, and does not
    say who that is."""

    job_id: str
    payload: bytes
    log_id: str = ""
    output_tokens_max: int = TOKENS_MAX
    seed: int = 0
    client: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    pass


Command = Start | Cancel | Ping | Shutdown


def encode_command(command: Command) -> bytes:
    match command:
        case Start(job_id, payload, log_id, output_tokens_max, seed, client):
            header = (Kind.START, job_id, log_id, output_tokens_max, seed, client)
            return make_frame(header, payload)
        case Cancel(job_id):
            return make_frame((Kind.CANCEL, job_id))
        case Ping(number):
            return make_frame((Kind.PING, number))
        case Shutdown():
            return make_frame((Kind.SHUTDOWN,))


def parse_command(header: Any, blob: memoryview) -> Command:
    """The worker's side: the node is trusted, so what does not fit is a bug and fails loudly."""
    match header:
        case [Kind.START, str(job_id), str(log_id), int(output_max), int(seed), str(client)]:
            return Start(job_id, bytes(blob), log_id, output_max, seed, client)
        case [Kind.CANCEL, str(job_id)]:
            return Cancel(job_id)
        case [Kind.PING, int(number)]:
            return Ping(number)
        case [Kind.SHUTDOWN]:
            return Shutdown()
    raise WorkerProtocolError("the node sent a command that this worker does not know")

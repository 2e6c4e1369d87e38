"""Every limit of the HTTP API: those of the settings, and those that are constants."""

from dataclasses import dataclass

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.body import BYTES_PER_S_MIN, GRACE_S
from coordinator.gateway.http.json_bounds import ESCAPES_MAX, VALUES_MAX
from coordinator.gateway.http.multipart import PARTS_MAX, TEXT_BYTES_MAX
from coordinator.gateway.http.server_protocol import (
    HEAD_BYTES_MAX,
    HEAD_WITHIN_S,
    HEADERS_MAX,
    KEEP_ALIVE_S,
    PIPELINED_MAX,
)
from coordinator.gateway.http.strict_json import DEPTH_MAX
from coordinator.gateway.http.unpacking import RATIO_MAX
from protocol.limits import PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Limit:
    """`name` is a setting's, or empty for a constant."""

    name: str
    value: float
    meaning: str


def limits_of(config: GatewayConfig) -> tuple[Limit, ...]:
    settings = {
        "body_bytes_max": "bytes of a request's body, unpacked if it is compressed (413)",
        "body_within_s": "seconds that a body may take to arrive (408)",
        "requests_max": "requests in flight, shared out between accounts (429)",
        "bodies_bytes_max": "bytes of bodies in flight, shared out between accounts (429)",
        "connections_max": "connections, shared out between address blocks (503)",
        "job_within_s": "seconds from a request to the end of its answer",
        "model_within_s": "seconds that a request waits for a node of a model offered lately (503)",
        "keepalive_s": "seconds of a stream without a sign of life, at most",
        "reader_within_s": "seconds that a client may read nothing of its answer",
        "idempotency_s": "seconds that an Idempotency-Key counts",
        "content_s": "seconds that an answer can be fetched which its client hung up on",
        "resend_within_s": "seconds that a purchase waits for its stock client to come back",
    }
    constants = (
        (PAYLOAD_BYTES_MAX, "bytes of one job's input (413)"),
        (HEAD_BYTES_MAX, "bytes of a request's head (431)"),
        (HEADERS_MAX, "headers of a request (431)"),
        (HEAD_WITHIN_S, "seconds that a head may take to arrive"),
        (KEEP_ALIVE_S, "seconds that an idle connection is kept"),
        (PIPELINED_MAX, "requests that wait on one connection (429)"),
        (GRACE_S, "seconds before a body has to arrive at a minimum rate (408)"),
        (BYTES_PER_S_MIN, "bytes a second, that rate (408)"),
        (RATIO_MAX, "times its size that a compressed body may unpack to (400)"),
        (VALUES_MAX, "values in a JSON body (413)"),
        (ESCAPES_MAX, "escaped characters in a JSON body (413)"),
        (DEPTH_MAX, "levels that a JSON body may nest (400)"),
        (PARTS_MAX, "parts of a form (400)"),
        (TEXT_BYTES_MAX, "bytes of a form's text field (400)"),
    )
    return (
        *(Limit(name, getattr(config, name), meaning) for name, meaning in settings.items()),
        *(Limit("", value, meaning) for value, meaning in constants),
    )

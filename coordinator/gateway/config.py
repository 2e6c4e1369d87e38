"""The gateway's settings, with defaults that suit one coordinator on a small machine."""

from dataclasses import dataclass

from protocol.limits import MIB


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`host` and `port` are where HTTP is served; port 0 takes a free one. With a `descriptor` it
    is served on that inherited listening socket instead."""

    host: str = "127.0.0.1"
    port: int = 8080
    descriptor: int | None = None
    # Where gRPC is served, beside HTTP; None: nowhere, port 0 takes a free one.
    grpc_host: str = "127.0.0.1"
    grpc_port: int | None = None
    # The largest lawful input (8 MiB) as base64, with room for the JSON around it.
    body_bytes_max: int = 12 * MIB
    # A body that trickles in holds a request open; photographs over slow lines need some time.
    body_within_s: float = 60.0
    # Each request in flight costs some tens of KiB and a hold. Shared out between accounts.
    requests_max: int = 4_096
    # Bodies of requests in flight, in all; with its parsed form a body takes about four times that.
    bodies_bytes_max: int = 256 * MIB
    connections_max: int = 16_384
    # The longest that one job may take, from request to the last token.
    job_within_s: float = 300.0
    # How long a request waits for a node of a model that was offered lately: nodes attach again
    # within seconds of a restart.
    model_within_s: float = 8.0
    # Silent streams say this often that they are alive: proxies cut after 30 to 60 seconds.
    keepalive_s: float = 10.0
    # Chunks that wait for a slow reader, beyond what the sockets hold; then the job waits for it.
    stream_chunks_max: int = 1_024
    # A client that reads nothing of its answer for so long is disconnected.
    reader_within_s: float = 60.0
    # How long a request with the same Idempotency-Key gets the same reply.
    idempotency_s: float = 24 * 3_600.0
    # How long an answer that its client did not get can be fetched by the id of its generation.
    content_s: float = 600.0
    # Stock clients send a request again after half a second to eight.
    resend_within_s: float = 10.0
    # How long requests in flight may go on once the gateway is told to stop.
    shutdown_within_s: float = 10.0
    # Whether callers show an API key. Without, only programs of this machine may be reached by it.
    needs_key: bool = True
    # Origins whose pages may call us from a browser; "*" for any. Empty: none may.
    cors_origins: tuple[str, ...] = ()
    # Whether GET /metrics answers other machines, too. It always answers this one, unless a proxy
    # has passed the request on.
    metrics_public: bool = False

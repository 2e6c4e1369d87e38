"""What a problem is in gRPC: a status, the sentence, and metadata that says when to come back."""

from collections.abc import Sequence

import grpc

from coordinator.gateway.errors import Headers, Problem, ProblemKind

Metadata = tuple[tuple[str, str], ...]

_BY_STATUS = {
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_BY_KIND = {
    ProblemKind.REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ProblemKind.AUTHENTICATION: grpc.StatusCode.UNAUTHENTICATED,
    ProblemKind.PERMISSION: grpc.StatusCode.PERMISSION_DENIED,
    # Sending it again helps only once there are funds.
    ProblemKind.FUNDS: grpc.StatusCode.FAILED_PRECONDITION,
    ProblemKind.RATE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ProblemKind.SERVER: grpc.StatusCode.INTERNAL,
    ProblemKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ProblemKind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of(problem: Problem) -> grpc.StatusCode:
    return _BY_STATUS.get(problem.status, _BY_KIND[problem.kind])


def trailers_of(problem: Problem) -> Metadata:
    metadata = [
        *metadata_of(problem.headers),
        ("x-should-retry", str(problem.should_retry).lower()),
    ]
    if problem.retry_after_ms is not None:
        metadata.append(("retry-after-ms", str(problem.retry_after_ms)))
    return tuple(metadata)


def metadata_of(headers: Headers | Sequence[tuple[bytes, bytes]]) -> Metadata:
    """Headers of ours as metadata. Those of HTTP alone mean nothing here."""
    return tuple(
        (name.decode(), value.decode("latin-1"))
        for name, value in headers
        if name.startswith(b"x-")
    )

"""What there is of an answer that was given up, for `GET /v1/generation/{id}/content`."""

import base64
from collections.abc import Mapping, Sequence

from coordinator.gateway.http.responses import to_json
from protocol.ids import JobId
from protocol.payload import Chunk


def partial_body(job_id: JobId, delivered: Mapping[int, Sequence[Chunk]]) -> bytes:
    """`delivered` are the choices of the answer as far as they came. Empty if nothing was
    delivered: then nothing was charged either."""
    choices = [
        {"index": index, **_output(chunks)} for index, chunks in sorted(delivered.items()) if chunks
    ]
    if not choices:
        return b""
    return to_json(
        {"data": {"id": job_id, "is_partial": True, "output": choices[0], "choices": choices}}
    )


def _output(chunks: Sequence[Chunk]) -> dict[str, object]:
    data = b"".join(chunk.data for chunk in chunks)
    if data:
        return {"data": base64.b64encode(data).decode()}
    return {"completion": "".join(chunk.text for chunk in chunks)}

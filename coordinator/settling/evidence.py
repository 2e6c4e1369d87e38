"""Evidence as a file: the signed messages of a finished lease, to keep and to check offline.

A JSON object with the envelopes in base64, exactly as signed. A reader needs neither this
coordinator nor its database to check who owes whom what, and why.
"""

import base64
import binascii
import json

from coordinator.errors import CoordinatorError
from protocol.countersigning import Delivery
from protocol.envelope import open_envelope
from protocol.errors import Code
from protocol.limits import SIGNED_BYTES_MAX
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.receipts import Evidence

FORMAT = "capacloud-evidence-1"
# Five envelopes in base64, and the names around them.
FILE_BYTES_MAX = 8 * SIGNED_BYTES_MAX


class EvidenceError(CoordinatorError):
    """The file is no evidence; the message says what is wrong with it."""

    code = Code.MALFORMED


def write_evidence(
    request: bytes,
    lease: bytes,
    receipt: bytes,
    *,
    acceptance: bytes | None = None,
    delivery: bytes | None = None,
) -> str:
    """The file's text, from envelopes."""
    envelopes = {
        "request": request,
        "lease": lease,
        "receipt": receipt,
        "acceptance": acceptance,
        "delivery": delivery,
    }
    encoded = {
        name: base64.b64encode(raw).decode() for name, raw in envelopes.items() if raw is not None
    }
    return json.dumps({"format": FORMAT, **encoded}, indent=2) + "\n"


def read_evidence(text: str) -> Evidence:
    """Check every signature. Raises EvidenceError, RemoteProtocolError."""
    if len(text) > FILE_BYTES_MAX:
        raise EvidenceError("the file is too large to be evidence")
    try:
        plain = json.loads(text)
        is_ours = isinstance(plain, dict) and plain.pop("format", None) == FORMAT
        raw = {name: base64.b64decode(value, validate=True) for name, value in plain.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise EvidenceError("the file is not JSON with base64 envelopes") from None
    if not is_ours or not {"request", "lease", "receipt"} <= raw.keys():
        raise EvidenceError(f"the file is not of format {FORMAT}")
    acceptance, delivery = raw.get("acceptance"), raw.get("delivery")
    return Evidence(
        open_envelope(raw["request"], JobRequest),
        open_envelope(raw["lease"], Lease),
        open_envelope(raw["receipt"], Receipt),
        open_envelope(acceptance, Acceptance) if acceptance is not None else None,
        open_envelope(delivery, Delivery) if delivery is not None else None,
    )

"""What signed messages say of a job: of its client's side for the verdict, of its node for the
record."""

from coordinator.leasing.open_lease import OpenLease
from coordinator.settling.verdicts import ClientWord
from protocol.blame import Observation, blame_by_receipt
from protocol.countersigning import JobOpening, read_proof
from protocol.endings import FINISH_RULES
from protocol.envelope import Signed, open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import Acceptance, Receipt


def word_of(
    receipt: Signed[Receipt], acceptance: Signed[Acceptance] | None, opened: OpenLease
) -> ClientWord:
    """What the client has said of a job. Raises RemoteProtocolError if a receipt without an
    acceptance carries links that its client did not sign."""
    counted = acceptance.message if acceptance is not None else None
    if receipt.message.amount_nano == 0 or (counted is not None and counted.agrees):
        return ClientWord(counted, opened.delivered)
    proof = read_proof(receipt.message, opened.lease, is_accepted=counted is not None)
    return ClientWord(counted, opened.delivered, proof)


def beginning_of(receipt: Receipt, opened: OpenLease) -> tuple[bytes, ...]:
    """The affinity keys of an input that its client named when it opened the lease; none if that
    was not signed."""
    try:
        opening = open_envelope(receipt.opening, JobOpening, signer=opened.lease.message.client)
    except RemoteProtocolError:
        return ()
    binding = opening.message.binding
    if binding is None or opening.message.lease_digest != opened.lease.digest:
        return ()
    return binding.affinity


def observation_of(receipt: Receipt) -> Observation:
    """What a receipt says of how the job went. Its times are the node's own word: not used."""
    failed = FINISH_RULES[receipt.finish].is_fault
    code = _code_of(receipt.code) if failed else None
    return Observation(
        code=code,
        blame=blame_by_receipt(code, receipt.finish) if code is not None else None,
        first_output_ms=None,
        total_ms=0.0,
        delivered=receipt.units,
        has_receipt=True,
        is_first_hand=False,
    )


def _code_of(text: str) -> Code:
    """A receipt's code; text that cannot be one stands for a failure of the node."""
    try:
        return Code(text)
    except ValueError:
        return Code.INTERNAL

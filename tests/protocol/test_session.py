import hashlib
from dataclasses import replace
from types import SimpleNamespace

import msgpack
import pytest

from protocol.client_session import (
    CHUNKS_BESIDE_TOKENS_MAX,
    EMPTY_ANSWER_TOKENS_MAX,
    EMPTY_TOKENS_MAX,
    Admitted,
    ClientEvent,
    ClientJob,
    Ended,
    Refused,
    WindowReached,
)
from protocol.codec import encode
from protocol.countersigning import JobAdmission
from protocol.endings import Finish
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import TOKEN_ID_MAX
from protocol.ids import sha256_digest
from protocol.job_frames import DATA_BYTES, AcceptedBody, OpenBody, Outgoing
from protocol.job_state import JobState
from protocol.limits import TOKENS_MAX, WINDOW_TOKENS_MIN
from protocol.messages import Receipt
from protocol.node_session import Accepted, CancelRequested, Countersignature, NodeJob, Opened
from protocol.payload import Chunk, OutputDigest, SaltedPayload
from protocol.pricing import Units
from tests.protocol.makers import (
    CLIENT,
    COORDINATOR,
    NODE,
    NOW_MS,
    PAYLOAD,
    SALT,
    SALTED,
    STRANGER,
    make_chain,
    make_lease,
    make_opening,
    make_receipt,
    make_request,
)

CHAIN = make_chain()
OPENING = seal(CLIENT, make_opening(CHAIN.lease)).raw
CHUNKS = (Chunk((5, 6), "Hello"), Chunk((7,), " world"))


def digest_of(chunks: tuple[Chunk, ...]) -> str:
    digest = OutputDigest(SALT)
    for chunk in chunks:
        digest.add(chunk)
    return digest.hexdigest()


def admit(node: NodeJob, units: Units, queue_position: int = 0) -> Outgoing:
    return node.accepted(units, queue_position=queue_position, now_ms=NOW_MS)


def produce(client: ClientJob, node: NodeJob, *chunks: Chunk) -> list[ClientEvent]:
    """Output through both halves, countersigned as it comes."""
    events = []
    waiting = [frame for chunk in chunks for frame in node.output(chunk)]
    while waiting:
        event = client.receive(*waiting.pop(0))
        events.append(event)
        if isinstance(event, WindowReached):
            for frame in event.frames:
                released = node.receive(*frame)
                assert isinstance(released, Countersignature)
                waiting += released.frames
    return events


def start(payload: bytes = PAYLOAD, *, silent_tokens: int = 0) -> tuple[ClientJob, NodeJob, Opened]:
    request = seal(CLIENT, make_request(payload=payload))
    lease = seal(COORDINATOR, make_lease(request))
    salted = SaltedPayload(payload, SALT)
    client = ClientJob(request, lease, salted, CLIENT, silent_tokens=silent_tokens)
    node = NodeJob(NODE)
    events = [node.receive(*frame) for frame in client.open(now_ms=NOW_MS)]
    assert events[:-1] == [None] * (len(events) - 1)
    opened = events[-1]
    assert isinstance(opened, Opened)
    return client, node, opened


def sign_receipt(opened: Opened, chunks: tuple[Chunk, ...], **changes: object) -> Receipt:
    units = Units(input_tokens=9, output_tokens=sum(len(c.token_ids) for c in chunks))
    receipt = make_receipt(opened.lease, units, digest_of(chunks))  # type: ignore[arg-type]  # a digest is text
    return replace(receipt, **changes)  # type: ignore[arg-type]  # tests break fields on purpose


def code_of(receive: object, *frame: object) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        receive(*frame)  # type: ignore[operator]  # a bound `receive` of either side
    return caught.value.code


def test_a_job_runs_from_open_to_countersignature() -> None:
    client, node, opened = start()
    assert opened.payload == PAYLOAD
    accepted = client.receive(*admit(node, Units(input_tokens=9), 1))
    assert accepted == Admitted(Units(input_tokens=9), 1)
    events = produce(client, node, *CHUNKS)
    assert [event for event in events if isinstance(event, Chunk)] == list(CHUNKS)
    receipt = seal(NODE, sign_receipt(opened, CHUNKS))
    ended = client.receive(*node.receipt(receipt))
    assert ended == Ended(receipt, agrees=True)
    assert client.units == Units(input_tokens=9, output_tokens=3)
    acceptance = client.acceptance(ended, now_ms=NOW_MS)
    assert acceptance.message.agrees
    assert node.receive(FrameType.JOB_ACCEPTANCE, acceptance.raw) == Accepted(acceptance)
    assert client.state is node.state is JobState.ENDED


def test_a_large_payload_travels_in_pieces() -> None:
    payload = bytes(range(256)) * 1500
    client, _, opened = start(payload)
    assert opened.payload == payload
    assert len(payload) > 2 * DATA_BYTES
    assert client.state is JobState.OPENED


def test_a_node_that_counts_more_than_it_sent_gets_a_disagreement() -> None:
    client, node, opened = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    produce(client, node, CHUNKS[0])
    ended = client.receive(*node.receipt(seal(NODE, sign_receipt(opened, CHUNKS))))
    assert isinstance(ended, Ended)
    assert not ended.agrees
    acceptance = client.acceptance(ended, now_ms=NOW_MS).message
    assert not acceptance.agrees
    assert acceptance.units.output_tokens == 2


def test_the_digest_does_not_depend_on_how_the_answer_was_cut() -> None:
    whole = Chunk((5, 6, 7), "Hello world")
    assert digest_of((whole,)) == digest_of(CHUNKS)
    assert digest_of((whole,)) != digest_of((Chunk((5, 6, 7), "Hello World"),))


def test_a_cancelled_job_still_takes_output_in_flight_and_a_receipt() -> None:
    client, node, opened = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    in_flight, _ = node.output(CHUNKS[0])
    (cancel,) = client.cancel()
    assert node.receive(*cancel) == CancelRequested()
    client.receive(*in_flight)
    receipt = sign_receipt(opened, CHUNKS[:1], finish=Finish.CANCELLED)
    assert isinstance(client.receive(*node.receipt(seal(NODE, receipt))), Ended)
    assert client.cancel() == []
    assert node.receive(FrameType.JOB_CANCEL, b"of a later version") is None


def test_a_refusal_frees_the_hold_with_a_signed_receipt_of_zero() -> None:
    client, node, opened = start()
    receipt = seal(NODE, make_receipt(opened.lease, Units(), finish=Finish.REFUSED))
    refused = client.receive(*node.error(Code.BUSY, "full", receipt=receipt, retry_after_ms=50))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.retry_after_ms) == (Code.BUSY, 50)
    assert refused.ended is not None
    assert refused.ended.agrees
    assert refused.ended.receipt.message.amount_nano == 0


def test_a_refusal_without_evidence_carries_no_receipt() -> None:
    client, node, _ = start()
    refused = client.receive(*node.error(Code.BAD_SIGNATURE, "no", receipt=None))
    assert isinstance(refused, Refused)
    assert refused.ended is None
    assert client.state is JobState.REFUSED


def test_a_payload_other_than_the_pinned_one_is_refused() -> None:
    body = OpenBody(CHAIN.request.raw, CHAIN.lease.raw, OPENING, SALT, b"X" * len(PAYLOAD))
    assert code_of(NodeJob(NODE).receive, FrameType.JOB_OPEN, encode(body)) is Code.DIGEST_MISMATCH


def test_a_payload_longer_than_announced_is_refused() -> None:
    body = OpenBody(CHAIN.request.raw, CHAIN.lease.raw, OPENING, SALT, PAYLOAD + b"more")
    assert code_of(NodeJob(NODE).receive, FrameType.JOB_OPEN, encode(body)) is Code.DIGEST_MISMATCH


def test_opening_a_job_costs_no_chain_before_it_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node computed 4,096 links for a lease before it looked who had signed it."""
    hashed = 0

    def sha256(data: bytes) -> object:
        nonlocal hashed
        hashed += 1
        return hashlib.sha256(data)

    request = seal(CLIENT, make_request())
    lease = seal(COORDINATOR, make_lease(request))
    frames = ClientJob(request, lease, SALTED, CLIENT).open(now_ms=NOW_MS)
    monkeypatch.setattr("protocol.windows.hashlib", SimpleNamespace(sha256=sha256))
    node = NodeJob(NODE)
    for frame in frames:
        node.receive(*frame)
    assert hashed == 0
    admit(node, Units(input_tokens=9))
    assert hashed > 0


def test_frames_out_of_order_are_refused() -> None:
    node = NodeJob(NODE)
    assert code_of(node.receive, FrameType.JOB_DATA, b"x") is Code.UNEXPECTED_FRAME
    assert code_of(node.receive, FrameType.JOB_CANCEL, b"") is Code.UNEXPECTED_FRAME
    assert code_of(node.receive, FrameType.JOB_ACCEPTANCE, b"") is Code.UNEXPECTED_FRAME
    assert code_of(node.receive, FrameType.JOB_CHUNK, b"") is Code.UNEXPECTED_FRAME
    client, _, _ = start()
    assert code_of(client.receive, FrameType.JOB_OPEN, b"") is Code.UNEXPECTED_FRAME
    chunk = encode(CHUNKS[0])
    assert code_of(client.receive, FrameType.JOB_CHUNK, chunk) is Code.UNEXPECTED_FRAME


def test_a_second_open_is_refused() -> None:
    client, node, _ = start()
    body = encode(OpenBody(CHAIN.request.raw, CHAIN.lease.raw, OPENING, SALT, PAYLOAD))
    assert code_of(node.receive, FrameType.JOB_OPEN, body) is Code.UNEXPECTED_FRAME
    assert client.state is JobState.OPENED
    assert code_of(node.receive, FrameType.JOB_OPEN, b"") is Code.UNEXPECTED_FRAME


def test_more_tokens_than_leased_are_refused() -> None:
    client, node, _ = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    flood = encode(Chunk(tuple(range(51)), "x"))
    assert code_of(client.receive, FrameType.JOB_CHUNK, flood) is Code.RECEIPT_MISMATCH


def test_chunks_that_cost_a_node_nothing_are_refused() -> None:
    client, node, _ = start()
    client.receive(*admit(node, Units(input_tokens=4)))
    assert code_of(client.receive, FrameType.JOB_CHUNK, encode(Chunk())) is Code.UNEXPECTED_FRAME


def test_the_number_of_chunks_is_bounded() -> None:
    client, node, _ = start()
    client.receive(*admit(node, Units(input_tokens=4)))
    chunk = encode(Chunk(text="x"))
    for _ in range(50 + CHUNKS_BESIDE_TOKENS_MAX):
        client.receive(FrameType.JOB_CHUNK, chunk)
    assert code_of(client.receive, FrameType.JOB_CHUNK, chunk) is Code.UNEXPECTED_FRAME


@pytest.mark.parametrize("token_id", [-1, TOKEN_ID_MAX + 1])
def test_a_token_id_that_no_digest_holds_is_refused(token_id: int) -> None:
    client, node, _ = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    chunk = msgpack.packb({"token_ids": [token_id]})
    assert code_of(client.receive, FrameType.JOB_CHUNK, chunk) is Code.MALFORMED


def test_what_exceeds_every_count_leaves_the_count_before_it() -> None:
    most = Units(output_tokens=TOKENS_MAX)
    request = seal(CLIENT, replace(make_request(), units_max=most, units_expected=most))
    lease = seal(COORDINATOR, replace(make_lease(request), units_max=most, ceiling_nano=10**12))
    client = ClientJob(request, lease, SALTED, CLIENT)
    said = JobAdmission(lease.digest, NODE.peer_id, Units(), bytes(32), NOW_MS)
    admission = seal(NODE, said).raw
    client.open(now_ms=NOW_MS)
    client.receive(FrameType.JOB_ACCEPTED, encode(AcceptedBody(admission, 0)))
    flood = encode(Chunk((1,) * (TOKENS_MAX // 2), "x"))
    for _ in range(2):
        client.receive(FrameType.JOB_CHUNK, flood)
    assert code_of(client.receive, FrameType.JOB_CHUNK, flood) is Code.RECEIPT_MISMATCH
    assert client.units_owed == most


def test_more_input_than_leased_is_refused() -> None:
    client, node, _ = start()
    accepted = admit(node, Units(input_tokens=101), 0)
    assert code_of(client.receive, *accepted) is Code.RECEIPT_MISMATCH


def test_a_receipt_signed_by_another_key_is_refused() -> None:
    client, node, opened = start()
    receipt = seal(STRANGER, make_receipt(opened.lease, Units(), finish=Finish.REFUSED))
    assert code_of(client.receive, *node.receipt(receipt)) is Code.WRONG_SIGNER


def test_the_pinned_digest_is_of_the_salt_and_the_payload() -> None:
    assert make_request().payload_digest == sha256_digest(SALT + PAYLOAD)


def textless(count: int) -> tuple[Chunk, ...]:
    """One token each, as they come from an engine."""
    return tuple(Chunk((number,)) for number in range(count))


def answered(*chunks: Chunk, finish: Finish = Finish.STOP, silent_tokens: int = 0) -> ClientJob:
    """A whole answer with its receipt. Raises RemoteProtocolError as the client does."""
    client, node, opened = start(silent_tokens=silent_tokens)
    client.receive(*admit(node, Units(input_tokens=9), 0))
    produce(client, node, *chunks)
    client.receive(*node.receipt(seal(NODE, sign_receipt(opened, chunks, finish=finish))))
    return client


@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_an_answer_of_tokens_without_a_text_is_none(finish: Finish) -> None:
    """It was a success, and was paid: a record could be earned with it."""
    assert answered(*textless(EMPTY_ANSWER_TOKENS_MAX), finish=finish).state is JobState.ENDED
    chunks = textless(EMPTY_ANSWER_TOKENS_MAX + 1)
    client, node, opened = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    produce(client, node, *chunks)
    receipt = node.receipt(seal(NODE, sign_receipt(opened, chunks, finish=finish)))
    assert code_of(client.receive, *receipt) is Code.EMPTY_OUTPUT
    assert client.units_owed == Units(), "nothing that can be read, and nothing before it"


def test_a_client_signs_for_one_window_of_tokens_without_a_text() -> None:
    client, node, _ = start()
    client.receive(*admit(node, Units(input_tokens=9), 0))
    events = produce(client, node, *textless(EMPTY_TOKENS_MAX))
    assert client.units.output_tokens == EMPTY_TOKENS_MAX
    frames = [event.frames for event in events if isinstance(event, WindowReached)]
    assert len(frames) == 1 + EMPTY_TOKENS_MAX // WINDOW_TOKENS_MIN
    one_more, *_ = node.output(Chunk((1,)))
    assert code_of(client.receive, *one_more) is Code.EMPTY_OUTPUT
    assert client.units_owed == Units()


def test_what_the_client_asked_for_may_be_silent() -> None:
    """A stop string that is held back, or tokens beyond the end of the text."""
    silent = textless(EMPTY_ANSWER_TOKENS_MAX + 5)
    assert answered(*silent, silent_tokens=5).units.output_tokens == len(silent)


def test_silence_around_a_text_is_no_fault() -> None:
    chunks = (*textless(EMPTY_TOKENS_MAX), CHUNKS[0], *textless(EMPTY_TOKENS_MAX))
    assert answered(*chunks).state is JobState.ENDED

"""What it costs to sign for a text while it streams: µs of CPU per token, all four ends together.

The same answer goes twice through both halves of a job's session, without I/O: once in windows, and
once as it would without them. The difference is what windows cost client and node; a gateway is a
client. A coordinator has no part in a receipt with its client's acceptance; `lone` figures add the
proof that it reads from one without.

Opening and admission are signed once per job. For the opening, which it verifies, the node does not
verify the request, whose digest the verified lease names; `gross` figures leave that saving out.
"""

import time
from collections.abc import Callable, Iterator
from random import Random

from protocol.client_session import ClientJob, WindowReached
from protocol.codec import encode
from protocol.countersigning import JobAdmission, JobOpening, read_proof, terms_of
from protocol.endings import Finish
from protocol.envelope import Signed, open_envelope, seal
from protocol.framing import FrameType
from protocol.ids import JobId, LeaseId, derive_ulid, new_ulid, sha256_digest
from protocol.job_frames import Outgoing
from protocol.job_state import JobEvent, JobState, next_state
from protocol.keys import SigningKey
from protocol.limits import WINDOW_TOKENS_MAX, WINDOW_TOKENS_MIN
from protocol.messages import NO_CONSTRAINTS, JobRequest, Lease, Objective, Receipt, Task
from protocol.node_session import Countersignature, NodeJob
from protocol.payload import Chunk, SaltedPayload
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.receipts import charge_nano
from protocol.windows import ClientChains, node_chain

NOW_MS = 1_770_000_000_000
ANSWERS = (64, 256, 1_024)
WINDOWS = (WINDOW_TOKENS_MIN, WINDOW_TOKENS_MAX)
INPUT_TOKENS = 200
# Jobs of each kind in turn, of which the fastest counts: programs beside us only slow them down.
JOBS = 31

_rng = Random(1)
CLIENT, NODE, COORDINATOR = (SigningKey.generate(_rng.randbytes) for _ in range(3))
PAYLOAD = SaltedPayload(b"x" * 800, bytes(16))
PRICE = PriceSheet(input_nano_per_mtok=20_000_000, output_nano_per_mtok=60_000_000)


def run() -> dict[str, float]:
    """Figures by answer length and window."""
    figures: dict[str, float] = {}
    for tokens in ANSWERS:
        for window_tokens in WINDOWS:
            for name, us_per_token in _measure(tokens, window_tokens):
                figures[f"{name}_{tokens}_w{window_tokens}"] = us_per_token
    return figures


def _measure(tokens: int, window_tokens: int) -> Iterator[tuple[str, float]]:
    job = _Job(tokens, window_tokens)
    parts = (job.stream, job.stream_plainly, job.sign_once, job.verify_request, job.prove)
    windows, plain, signing, request, proof = _fastest_us(parts)
    streaming = windows - plain
    gross = streaming + signing
    yield "us_per_token", (gross - request) / tokens
    yield "us_per_token_gross", gross / tokens
    yield "us_per_token_streaming", streaming / tokens
    yield "us_per_token_lone", (gross + proof - request) / tokens


def _fastest_us(calls: tuple[Callable[[], object], ...]) -> list[float]:
    """CPU microseconds of each, taken in turns so that a noisy moment hits all of them."""
    taken_s: list[list[float]] = [[] for _ in calls]
    for _ in range(JOBS):
        for call, times_s in zip(calls, taken_s, strict=True):
            started_s = time.process_time()
            call()
            times_s.append(time.process_time() - started_s)
    return [1e6 * min(times_s) for times_s in taken_s]


class _Job:
    """One leased job, and each party's share of the work on it."""

    def __init__(self, tokens: int, window_tokens: int) -> None:
        self._chunks = [Chunk((number,), "word ") for number in range(tokens)]
        self._request = seal(CLIENT, _request(Units(4 * INPUT_TOKENS, tokens)))
        self._lease = seal(COORDINATOR, _lease(self._request, window_tokens))
        self._opening = self.sign_opening()
        self._receipt = self._sign_receipt(self.stream())

    def stream(self) -> NodeJob:
        """Chunks, progress and countersignatures, through both halves."""
        client, node = self._start()
        for chunk in self._chunks:
            frames = node.output(chunk)
            while frames:
                frames = _answer(client, node, frames)
        return node

    def stream_plainly(self) -> None:
        """The same chunks, coded, counted and hashed by both, but not signed for."""
        client, node = self._start()
        running = JobState.RUNNING
        for chunk in self._chunks:
            if node.state is not running:
                node.state = next_state(node.state, JobEvent.OUTPUT)
            node.output_digest.add(chunk)
            frames: list[Outgoing] = [(FrameType.JOB_CHUNK, encode(chunk))]
            while frames:
                frames = _answer(client, node, frames)

    def sign_opening(self) -> Signed[JobOpening]:
        """The client's two chains, its signature, and the node's check."""
        chains = ClientChains(CLIENT, self._lease.digest, terms_of(self._lease.message))
        opening = JobOpening(
            lease_digest=self._lease.digest,
            client=CLIENT.peer_id,
            node=NODE.peer_id,
            input_anchor=chains.input_anchor,
            output_anchor=chains.output_anchor,
            issued_at_ms=NOW_MS,
        )
        return open_envelope(seal(CLIENT, opening).raw, JobOpening)

    def sign_once(self) -> None:
        """All that windows add to a job besides its stream: also the node's chain and admission."""
        self.sign_opening()
        lease = self._lease
        chain = node_chain(NODE, lease.digest, terms_of(lease.message))
        units = Units(INPUT_TOKENS)
        seal(NODE, JobAdmission(lease.digest, NODE.peer_id, units, chain.anchor, NOW_MS))

    def verify_request(self) -> None:
        open_envelope(self._request.raw, JobRequest)

    def prove(self) -> None:
        """What a coordinator reads from a receipt without its client's word."""
        read_proof(self._receipt, self._lease)

    def _start(self) -> tuple[ClientJob, NodeJob]:
        client = ClientJob(self._request, self._lease, PAYLOAD, CLIENT)
        node = NodeJob(NODE)
        for frame in client.open(now_ms=NOW_MS):
            node.receive(*frame)
        client.receive(*node.accepted(Units(INPUT_TOKENS), queue_position=0, now_ms=NOW_MS))
        return client, node

    def _sign_receipt(self, node: NodeJob) -> Receipt:
        granted = self._lease.message
        units = Units(INPUT_TOKENS, len(self._chunks))
        return Receipt(
            lease_id=granted.lease_id,
            lease_digest=self._lease.digest,
            job_id=granted.job_id,
            node=granted.node,
            client=granted.client,
            coordinator=granted.coordinator,
            model_digest=granted.model_digest,
            units=units,
            amount_nano=charge_nano(granted.price, units, Finish.STOP),
            output_digest=node.output_digest.hexdigest(),
            finish=Finish.STOP,
            code="",
            queued_ms=0,
            first_output_ms=0,
            total_ms=0,
            issued_at_ms=NOW_MS,
            opening=self._opening.raw,
            countersigned=node.window.countersigned,
        )


def _answer(client: ClientJob, node: NodeJob, frames: list[Outgoing]) -> list[Outgoing]:
    """Frames of the node to the client, its signatures back, and what those let go."""
    released: list[Outgoing] = []
    for frame in frames:
        event = client.receive(*frame)
        if isinstance(event, WindowReached):
            for signature in event.frames:
                signed = node.receive(*signature)
                assert isinstance(signed, Countersignature)
                released += signed.frames
    return released


def _request(units_max: Units) -> JobRequest:
    return JobRequest(
        job_id=JobId(new_ulid(NOW_MS, bytes(10))),
        client=CLIENT.peer_id,
        coordinator=COORDINATOR.peer_id,
        model="a-model",
        task=Task.CAUSAL_LM,
        payload_digest=PAYLOAD.digest,
        payload_bytes=len(PAYLOAD.data),
        units_max=units_max,
        units_expected=units_max,
        objective=Objective.BALANCED,
        constraints=NO_CONSTRAINTS,
        issued_at_ms=NOW_MS,
        deadline_at_ms=NOW_MS + 60_000,
    )


def _lease(request: Signed[JobRequest], window_tokens: int) -> Lease:
    asked = request.message
    return Lease(
        lease_id=LeaseId(derive_ulid(asked.job_id, "lease/0")),
        request_digest=request.digest,
        job_id=asked.job_id,
        attempt=0,
        client=asked.client,
        node=NODE.peer_id,
        coordinator=COORDINATOR.peer_id,
        offer_digest=sha256_digest(b"an offer"),
        model_digest=sha256_digest(b"a model"),
        price=PRICE,
        units_max=asked.units_max,
        ceiling_nano=cost_nano(PRICE, asked.units_max),
        issued_at_ms=NOW_MS,
        open_before_ms=NOW_MS + 30_000,
        deadline_at_ms=NOW_MS + 60_000,
        window_tokens=window_tokens,
    )

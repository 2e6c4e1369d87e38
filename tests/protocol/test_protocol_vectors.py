"""The test vectors of docs/protocol.md: one small job, made again from three seeds by the code, and
read back from the page as another implementation would."""

from dataclasses import replace

import pytest

from protocol.client_session import ClientJob, Ended, WindowReached
from protocol.codec import decode, encode
from protocol.countersigning import Delivery, check_delivery, read_proof
from protocol.endings import Finish
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code
from protocol.features import Feature
from protocol.framing import Frame, FrameDecoder, FrameType, encode_frame
from protocol.generation import GenerationInput
from protocol.ids import JobId, LeaseId, derive_ulid, new_ulid, sha256_digest
from protocol.keys import SigningKey, verify
from protocol.late_payloads import PayloadBinding
from protocol.manifest import ModelFile, ModelManifest, encode_manifest, manifest_digest
from protocol.messages import (
    NO_CONSTRAINTS,
    Acceptance,
    Constraints,
    DataCollection,
    IsolationTier,
    JobRequest,
    Lease,
    Objective,
    Receipt,
    Task,
)
from protocol.money import split_fee
from protocol.net.frames import Hello
from protocol.net.rpc import RequestBody
from protocol.node_session import NodeJob, Opened
from protocol.offers import Hardware, ModelOffer, NodeOffer
from protocol.payload import (
    Chunk,
    OutputDigest,
    SaltedPayload,
    derive_seed,
    salted_digest,
    tokens_digest,
)
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.receipts import Evidence, charge_nano, draft_receipt, verify_chain
from protocol.services import DeliveryAsk, Method, offer_topic, shard_of
from tests.protocol.page import rows_under, vectors

NOW_MS = 1_770_000_000_000
CLIENT, COORDINATOR, NODE = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
PRICE = PriceSheet(input_nano_per_mtok=50_000_001, output_nano_per_mtok=200_000_000)
UNITS_MAX = Units(input_tokens=64, output_tokens=16)
UNITS = Units(input_tokens=4, output_tokens=3)
CHUNKS = (Chunk((5, 70_000), "Grüß"), Chunk((7,), " Gott"))
PAYLOAD = encode(GenerationInput(max_tokens=16, prompt="Hi", temperature=0.0))
SALT = bytes(range(16))
INPUT_TOKENS = (1, 70_000, 5, 7)
MANIFEST = ModelManifest(
    name="tiny",
    task=Task.CAUSAL_LM,
    architecture="llama",
    # Not in the order of the canonical form.
    files=(
        ModelFile("weights/model.safetensors", sha256_digest(b"weights"), 7),
        ModelFile("config.json", sha256_digest(b"{}"), 2),
    ),
    dtype="bfloat16",
    quantization="bf16",
    context_tokens=2_048,
    licence="Apache-2.0",
    source='file:"Grüße"',
)


def make_offer() -> NodeOffer:
    model = ModelOffer(
        name=MANIFEST.name,
        manifest_digest=manifest_digest(MANIFEST),
        task=MANIFEST.task,
        quantization=MANIFEST.quantization,
        context_tokens=MANIFEST.context_tokens,
        slots=4,
        queue_max=8,
        prefill_tps=1_000,
        decode_tps=50,
        price=PRICE,
    )
    return NodeOffer(
        node=NODE.peer_id,
        incarnation_ms=NOW_MS - 3_600_000,
        sequence=60,
        issued_at_ms=NOW_MS - 1_000,
        expires_at_ms=NOW_MS + 239_000,
        addresses=(f"/ip4/192.0.2.1/tcp/4101/p2p/{NODE.peer_id}",),
        region="",
        isolation=IsolationTier.BWRAP,
        hardware=Hardware("cpu", "a CPU", 2**33, 1),
        models=(model,),
        software="1",
        data_collection=DataCollection.DENY,
    )


def make_request() -> JobRequest:
    return JobRequest(
        job_id=JobId(new_ulid(NOW_MS, bytes(range(10)))),
        client=CLIENT.peer_id,
        coordinator=COORDINATOR.peer_id,
        model=manifest_digest(MANIFEST),
        task=Task.CAUSAL_LM,
        payload_digest=salted_digest(PAYLOAD, SALT),
        payload_bytes=len(PAYLOAD),
        units_max=UNITS_MAX,
        units_expected=Units(input_tokens=4, output_tokens=16),
        objective=Objective.BALANCED,
        constraints=NO_CONSTRAINTS,
        issued_at_ms=NOW_MS,
        deadline_at_ms=NOW_MS + 60_000,
    )


def make_lease(request: Signed[JobRequest], offer: Signed[NodeOffer]) -> Lease:
    asked = request.message
    return Lease(
        lease_id=LeaseId(derive_ulid(asked.job_id, "lease/0")),
        request_digest=request.digest,
        job_id=asked.job_id,
        attempt=0,
        client=asked.client,
        node=NODE.peer_id,
        coordinator=COORDINATOR.peer_id,
        offer_digest=offer.digest,
        model_digest=manifest_digest(MANIFEST),
        price=PRICE,
        units_max=UNITS_MAX,
        ceiling_nano=cost_nano(PRICE, UNITS_MAX),
        issued_at_ms=NOW_MS + 5,
        open_before_ms=NOW_MS + 30_005,
        deadline_at_ms=NOW_MS + 60_005,
    )


def make_receipt(lease: Signed[Lease], node: NodeJob) -> Receipt:
    assert node.terms is not None
    output = OutputDigest(SALT)
    for chunk in CHUNKS:
        output.add(chunk)
    receipt = draft_receipt(
        lease,
        UNITS,
        Finish.STOP,
        output_digest=output.hexdigest(),
        issued_at_ms=NOW_MS + 100,
    )
    return replace(
        receipt,
        first_output_ms=20,
        total_ms=80,
        opening=node.terms.opening.raw,
        countersigned=node.window.countersigned,
    )


def ahead_vectors(offer: Signed[NodeOffer]) -> dict[str, str]:
    constraints = Constraints(features=(Feature.LATE_PAYLOAD,))
    asked = replace(
        make_request(), payload_digest=None, payload_bytes=1_024, constraints=constraints
    )
    request = seal(CLIENT, asked)
    lease = seal(COORDINATOR, make_lease(request, offer))
    payload = SaltedPayload(PAYLOAD, SALT)
    binding = PayloadBinding(payload.digest, len(PAYLOAD), UNITS_MAX)
    node = NodeJob(NODE)
    client = ClientJob(request, lease, payload, CLIENT, binding=binding)
    for frame in client.open(now_ms=NOW_MS + 10):
        node.receive(*frame)
    assert node.terms is not None
    return {
        "request ahead": request.raw.hex(),
        "lease ahead": lease.raw.hex(),
        "binding opening": node.terms.opening.raw.hex(),
    }


def make_vectors() -> dict[str, str]:
    """The section of the page, in its order."""
    found: dict[str, str] = {}
    for who, key in (("client", CLIENT), ("coordinator", COORDINATOR), ("node", NODE)):
        found |= {
            f"{who} seed": key.seed().hex(),
            f"{who} public key": key.public_key.hex(),
            f"{who} peer id": key.peer_id,
        }
    offer = seal(NODE, make_offer())
    request = seal(CLIENT, make_request())
    lease = seal(COORDINATOR, make_lease(request, offer))
    client = ClientJob(request, lease, SaltedPayload(PAYLOAD, SALT), CLIENT)
    node = NodeJob(NODE)
    opening = client.open(now_ms=NOW_MS + 10)
    for frame in opening:
        node.receive(*frame)
    accepted = node.accepted(Units(input_tokens=4), queue_position=0, now_ms=NOW_MS + 30)
    chunk, progress = node.output(CHUNKS[0])
    events = [client.receive(*frame) for frame in (accepted, chunk, progress)]
    assert isinstance(events[-1], WindowReached)
    delivery = client.delivery(Code.NODE_LOST, now_ms=NOW_MS + 60)
    (countersign,) = events[-1].frames
    node.receive(*countersign)
    (last_chunk,) = node.output(CHUNKS[1])
    receipt = seal(NODE, make_receipt(lease, node))
    talk = [accepted, chunk, progress, countersign, last_chunk, node.receipt(receipt)]
    events = [client.receive(*frame) for frame in talk[-2:]]
    assert events[-1] == Ended(receipt, agrees=True)
    acceptance = client.acceptance(Ended(receipt, agrees=True), now_ms=NOW_MS + 101)
    input_digest = tokens_digest((INPUT_TOKENS,), prefix_tokens=2)
    hello = Frame(FrameType.HELLO, 0, encode(Hello((1,), "client")))
    ask = RequestBody(Method.DELIVERY, encode(DeliveryAsk(delivery.raw)))
    talk.append((FrameType.REQUEST, encode(ask)))
    frames = [encode_frame(Frame(kind, 1, body)).hex() for kind, body in (*opening, *talk)]
    return found | {
        "manifest": encode_manifest(MANIFEST).decode(),
        "manifest digest": manifest_digest(MANIFEST),
        "offer topic": offer_topic(shard_of(NODE.peer_id)),
        "offer envelope": offer.raw.hex(),
        "offer digest": offer.digest,
        "cold model": encode(replace(offer.message.models[0], load_ms=4_000)).hex(),
        "payload": PAYLOAD.hex(),
        "salt": SALT.hex(),
        "payload digest": salted_digest(PAYLOAD, SALT),
        "HELLO": encode_frame(hello).hex(),
        "JOB_OPEN": frames[0],
        "request digest": request.digest,
        "lease digest": lease.digest,
        "JOB_ACCEPTED": frames[1],
        "JOB_CHUNK 1": frames[2],
        "JOB_PROGRESS": frames[3],
        "JOB_COUNTERSIGN": frames[4],
        "JOB_CHUNK 2": frames[5],
        "output digest": receipt.message.output_digest,
        "JOB_RECEIPT": frames[6],
        "receipt digest": receipt.digest,
        "acceptance body": encode(acceptance.message).hex(),
        "acceptance digest": acceptance.digest,
        "signature": acceptance.raw[-64:].hex(),
        "acceptance envelope": acceptance.raw.hex(),
        "input token ids": ",".join(map(str, INPUT_TOKENS)),
        "input digest": salted_digest(bytes.fromhex(input_digest), SALT),
        "drawn seed": str(derive_seed(request.digest)),
        "delivery envelope": delivery.raw.hex(),
        "delivery digest": delivery.digest,
        "REQUEST": frames[7],
        **ahead_vectors(offer),
    }


def test_the_page_has_these_vectors_and_no_others() -> None:
    assert list(vectors()) == list(make_vectors())


@pytest.mark.parametrize("name", make_vectors())
def test_the_code_makes_the_bytes_of_the_page(name: str) -> None:
    assert vectors()[name] == make_vectors()[name]


def test_the_digest_is_of_kind_and_body_and_the_signature_of_the_same() -> None:
    content = b"capa/1/acceptance\0" + bytes.fromhex(vectors()["acceptance body"])
    assert sha256_digest(content) == vectors()["acceptance digest"]
    verify(CLIENT.peer_id, content, bytes.fromhex(vectors()["signature"]))


def body_on_page(name: str) -> tuple[FrameType, bytes]:
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(vectors()[name]))
    frame = decoder.next_frame()
    assert frame is not None
    decoder.end()
    return frame.type, frame.body


def test_the_bytes_of_the_page_are_a_whole_and_honest_job() -> None:
    opened = NodeJob(NODE).receive(*body_on_page("JOB_OPEN"))
    assert isinstance(opened, Opened)
    client = ClientJob(opened.request, opened.lease, SaltedPayload(opened.payload, SALT), CLIENT)
    client.open(now_ms=NOW_MS + 10)
    for name in ("JOB_ACCEPTED", "JOB_CHUNK 1"):
        client.receive(*body_on_page(name))
    reached = client.receive(*body_on_page("JOB_PROGRESS"))
    assert reached == WindowReached((body_on_page("JOB_COUNTERSIGN"),))
    client.receive(*body_on_page("JOB_CHUNK 2"))
    ended = client.receive(*body_on_page("JOB_RECEIPT"))
    assert isinstance(ended, Ended)
    assert ended.agrees
    acceptance = open_envelope(bytes.fromhex(vectors()["acceptance envelope"]), Acceptance)
    verify_chain(Evidence(opened.request, opened.lease, ended.receipt, acceptance))
    assert read_proof(ended.receipt.message, opened.lease).has_countersigned
    offer = open_envelope(bytes.fromhex(vectors()["offer envelope"]), NodeOffer)
    assert offer.digest == opened.lease.message.offer_digest
    assert offer.message.models[0].price == opened.lease.message.price


def test_the_delivery_on_the_page_is_one_that_a_coordinator_takes() -> None:
    opened = NodeJob(NODE).receive(*body_on_page("JOB_OPEN"))
    assert isinstance(opened, Opened)
    kind, body = body_on_page("REQUEST")
    asked = decode(RequestBody, body)
    assert (kind, asked.method) == (FrameType.REQUEST, Method.DELIVERY)
    raw = decode(DeliveryAsk, asked.body).delivery
    assert raw.hex() == vectors()["delivery envelope"]
    delivery = open_envelope(raw, Delivery, signer=CLIENT.peer_id)
    check_delivery(delivery, opened.lease)
    assert delivery.message.units == Units(input_tokens=4, output_tokens=2)


def test_charges_and_shares_are_those_of_the_page() -> None:
    units = ("input_tokens", "output_tokens", "images", "tensor_elements")
    for row in rows_under(*units, "prices", "finish", "charge", "fee_bps", "provider"):
        *counts, prices, finish, charge, fee_bps, provider = (c.replace(",", "") for c in row)
        sheet = PriceSheet(*map(int, prices.split(" / ")))
        charged_nano = charge_nano(sheet, Units(*map(int, counts)), Finish(finish))
        assert charged_nano == int(charge), row
        assert split_fee(charged_nano, int(fee_bps))[0] == int(provider), row

"""A market without nodes: answers what a test scripts, and keeps what it was asked for.

It honours the contract of `GatewayMarket`: a job is open once its first output is there, leaving it
early cancels it, and an outcome carries a receipt that the node signed.
"""

import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import trio

from capanode.engines.base import Completed
from capanode.worker.stream_windows import StreamWindows
from coordinator.buyer.ahead.pool import PoolCounts
from coordinator.buyer.attempt import AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.buyer.result import AttemptResult, PurchasePart, PurchaseResult
from coordinator.buyer.spec import JobSpec
from coordinator.gateway.caller import Caller
from coordinator.gateway.market_side.answers import AnswerShelf, MemoryShelf
from coordinator.gateway.market_side.market import Health, ModelInfo
from coordinator.gateway.market_side.records import Records
from protocol.codec import encode
from protocol.endings import Finish
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.generation import Alternative, GenerationInput, TokenScore, TokenScores, TokensOutput
from protocol.grants import KeyUse
from protocol.ids import Digest, JobId, LeaseId, PeerId, derive_ulid, new_ulid, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import Acceptance, Receipt, Task
from protocol.net.transport import TransportStatistics
from protocol.payload import (
    Chunk,
    ClassificationOutput,
    EmbeddingInput,
    EmbeddingOutput,
    ImageInput,
    JobInput,
    Label,
)
from protocol.pricing import PriceSheet, Units, cost_nano
from protocol.services import (
    BalanceAsk,
    BalanceReply,
    Counted,
    EvidenceAsk,
    EvidenceReply,
    JobAsk,
    JobAttempt,
    JobReply,
    JobsAsk,
    JobsReply,
    JobSummary,
    UsageAsk,
    UsageReply,
    UsageRow,
)
from protocol.tensors import (
    Datatype,
    ModelSignature,
    NamedTensor,
    TensorInput,
    TensorMetadata,
    TensorOutput,
    join_strings,
)

NOW_MS = 1_800_000_000_000
API_KEY = "sk-capa-test"
LIMITED_KEY = "sk-capa-limited"
OTHER_KEY = "sk-capa-other"
ROUTED_KEY = "sk-capa-routed"
NODE_KEY = SigningKey(bytes(31) + b"n")
CLIENT_KEY = SigningKey(bytes(31) + b"c")
OTHER_CLIENT_KEY = SigningKey(bytes(31) + b"d")
COORDINATOR = SigningKey(bytes(31) + b"m").peer_id
PRICE = PriceSheet(
    input_nano_per_mtok=20_000_000,
    output_nano_per_mtok=80_000_000,
    image_nano=5_000,
    tensor_nano_per_kelement=1_000,
)
DIGESTS = {task: sha256_digest(task.value.encode()) for task in Task}
NAMES = {
    Task.CAUSAL_LM: "tiny-chat",
    Task.EMBEDDING: "tiny-embedder",
    Task.IMAGE_CLASSIFICATION: "tiny/classifier",
    Task.TENSOR: "tiny-sums",
}
VECTOR = (0.5, -0.25, 1.0)
# Each row's sum, and its name; a row is told from its neighbours by a window of three.
SIGNATURE = ModelSignature(
    inputs=(TensorMetadata("x", Datatype.FP32, (-1, 2)),),
    outputs=(
        TensorMetadata("sum", Datatype.FP32, (-1,)),
        TensorMetadata("name", Datatype.BYTES, (-1,)),
    ),
    window_rows=3,
)


@dataclass
class Script:
    """How the next jobs go. `gate`, if set, is waited for before the token at `gate_before`."""

    tokens: Sequence[str] = ("Hel", "lo", "", " wörld ", "🙂")
    finish: Finish = Finish.STOP
    reason: Code | None = None
    end_stop: int | None = None
    end_token: int | None = None
    vectors: Sequence[tuple[float, ...]] = ()
    failure: JobFailed | None = None
    # Of one request for several answers, only the job with this number fails.
    failing_job: int | None = None
    failure_after: int | None = None
    gate_before: int | None = None
    lease_ms: float = 1.0
    interval_s: float = 0.0
    # Of the seven of a prompt.
    cached_tokens: int = 0


class FakeRecords:
    """The books of a market that has seen one job, of the client of `API_KEY`."""

    job_id = JobId(new_ulid(NOW_MS, b"0123456789"))

    async def balance(self, client: PeerId, ask: BalanceAsk) -> BalanceReply:
        await trio.lowlevel.checkpoint()
        return BalanceReply(2_500_000_000, 500_000_000, 10_000_000_000, 7_000_000_000)

    async def jobs(self, client: PeerId, ask: JobsAsk) -> JobsReply:
        found = await self.job(client, JobAsk(self.job_id))
        return JobsReply((found.job,) * min(2, ask.limit), "" if ask.before else self.job_id)

    async def job(self, client: PeerId, ask: JobAsk) -> JobReply:
        await trio.lowlevel.checkpoint()
        if (client, ask.job_id) != (CLIENT_KEY.peer_id, self.job_id):
            raise RemoteProtocolError("no such job", code=Code.NOT_FOUND)
        digest = DIGESTS[Task.CAUSAL_LM]
        job = JobSummary(
            job_id=self.job_id,
            model="tiny-chat",
            model_digest=digest,
            task=Task.CAUSAL_LM,
            state="settled",
            created_at_ms=NOW_MS,
            ended_at_ms=NOW_MS + 90,
            error_code="",
            amount_nano=540,
            units=Counted(7, 5),
        )
        first = JobAttempt(
            lease_id=LeaseId(derive_ulid(self.job_id, "lease/0")),
            attempt=0,
            node=OTHER_CLIENT_KEY.peer_id,
            state="released",
            price=PRICE,
            ceiling_nano=1_000,
            created_at_ms=NOW_MS,
            ended_at_ms=NOW_MS + 5,
            finish="",
            code="busy",
            amount_nano=0,
            units=Units(),
            queued_ms=0,
            first_output_ms=0,
            total_ms=0,
            receipt_state="",
            receipt_digest="",
        )
        second = replace(
            first,
            attempt=1,
            node=NODE_KEY.peer_id,
            state="settled",
            finish="stop",
            code="",
            amount_nano=540,
            units=Units(7, 5),
            queued_ms=3,
            first_output_ms=20,
            total_ms=80,
            receipt_state="settled",
            receipt_digest="e" * 64,
        )
        return JobReply(job, (first, second))

    async def evidence(self, client: PeerId, ask: EvidenceAsk) -> EvidenceReply:
        await self.job(client, JobAsk(ask.job_id))
        return EvidenceReply(b"request", b"lease", b"receipt", b"acceptance")

    async def usage(self, client: PeerId, ask: UsageAsk) -> UsageReply:
        await trio.lowlevel.checkpoint()
        row = UsageRow(
            ask.last_day, DIGESTS[Task.CAUSAL_LM], "tiny-chat", 3, 1_620, Counted(21, 15)
        )
        return UsageReply((row,))

    async def key_use(self, key_id: str) -> KeyUse:
        await trio.lowlevel.checkpoint()
        return KeyUse(
            key_id,
            "laptop",
            NOW_MS,
            budget_nano=5_000_000_000,
            spent_nano=1_000_000_000,
            held_nano=500_000_000,
            requests_per_minute=None,
        )


@dataclass
class FakeMarket:
    """`specs` are the jobs that were asked for, `cancelled` counts those that were left early."""

    script: Script = field(default_factory=Script)
    specs: list[JobSpec] = field(default_factory=list)
    cancelled: int = 0
    finished: int = 0
    running: int = 0
    most_at_once: int = 0
    lookups: int = 0
    looks: int = 0
    revoked: set[str] = field(default_factory=set)
    nodes: int = 3
    expected: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    features: frozenset[str] = frozenset(Feature) - {Feature.REASONING, Feature.VISION}
    chat_format: str = "hermes"
    tells_dimensions: bool = True
    scores_pairs: bool = False
    gate: trio.Event = field(default_factory=trio.Event)
    waiting: trio.Event = field(default_factory=trio.Event)
    cancellation: trio.Event = field(default_factory=trio.Event)
    client: PeerId = CLIENT_KEY.peer_id
    shares_account: bool = False
    # What its nodes keep of streams, if they do, and the tensors that they computed.
    windows: StreamWindows | None = None
    computed: list[TensorInput] = field(default_factory=list)

    shelf: AnswerShelf = field(
        default_factory=lambda: MemoryShelf(trio.current_time, bytes_max=2**20)
    )

    records: Records = field(default_factory=FakeRecords)

    async def authenticate(self, secret: str) -> Caller | None:
        await trio.lowlevel.checkpoint()
        self.lookups += 1
        if secret in self.revoked:
            return None
        if secret == API_KEY:
            return Caller("key-1", CLIENT_KEY, shares_account=self.shares_account)
        if secret == OTHER_KEY:
            return Caller("key-3", OTHER_CLIENT_KEY)
        if secret == ROUTED_KEY:
            return Caller("key-4", CLIENT_KEY, provider={"zdr": True, "sort": "price"})
        if secret == LIMITED_KEY:
            return Caller("key-2", CLIENT_KEY, requests_per_minute=2)
        return None

    @asynccontextmanager
    async def open_job(self, caller: Caller, spec: JobSpec) -> AsyncIterator["FakeJob"]:
        assert caller.signing_key in (CLIENT_KEY, OTHER_CLIENT_KEY)
        self.specs.append(spec)
        job = FakeJob(self, spec)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            with self._watched():
                await job.wait_first_output()
                yield job
        finally:
            self.running -= 1

    def model(self, name: str) -> ModelInfo | None:
        found = (m for m in self.models() if name in (m.name, m.digest))
        return None if name in self.hidden else next(found, None)

    def is_expected(self, name: str) -> bool:
        return name in self.expected

    def models(self) -> Sequence[ModelInfo]:
        dearer = PriceSheet(40_000_000, 160_000_000, 10_000, 7)
        return [
            ModelInfo(
                name=NAMES[task],
                digest=DIGESTS[task],
                task=task,
                quantization="bf16",
                nodes=self.nodes,
                context_tokens=2_048 if task is Task.CAUSAL_LM else 0,
                price_from=PRICE,
                price_to=dearer,
                first_seen_s=NOW_MS // 1_000,
                features=self._features(task),
                chat_format=self.chat_format if task is Task.CAUSAL_LM else "",
                quantizations=("bf16",),
                dimensions=len(VECTOR) if task is Task.EMBEDDING and self.tells_dimensions else 0,
                signature=SIGNATURE if task is Task.TENSOR else None,
            )
            for task in Task
        ]

    def _features(self, task: Task) -> frozenset[str]:
        if task is Task.EMBEDDING and self.scores_pairs:
            return frozenset({Feature.PAIR_SCORES})
        return self.features if task is Task.CAUSAL_LM else frozenset()

    def health(self) -> Health:
        self.looks += 1
        return Health(self.nodes, "" if self.nodes else "no node offers anything")

    def job_id_of(self, number: int) -> JobId:
        """What the client of a job was told, or will be."""
        name = self.specs[number].name
        assert name is not None, "it is the only job of its request"
        return name.id

    def network(self) -> TransportStatistics:
        return TransportStatistics(connections=7, gossip_rejected=3)

    def keep_windows(self) -> None:
        """From now on, by a node that has none yet."""
        self.windows = StreamWindows(SIGNATURE.window_rows - 1, lambda: 0.0)

    def leases_ahead(self) -> PoolCounts:
        return PoolCounts(ready=2, hits=5)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except trio.Cancelled:
            self.cancelled += 1
            self.cancellation.set()
            raise
        self.finished += 1


class FakeJob:
    """Plays the market's script."""

    def __init__(self, market: FakeMarket, spec: JobSpec) -> None:
        self.terms: AttemptTerms | None = None
        self.result: PurchaseResult | None = None
        self._market = market
        self._script = market.script
        self._spec = spec
        self._fails = market.script.failing_job in (None, len(market.specs) - 1)
        self._chunks: list[Chunk] = []
        self._next = 0

    async def wait_first_output(self) -> None:
        if self._market.model(self._spec.model) is None:
            raise JobFailed(f"no node offers {self._spec.model!r} now", code=Code.UNKNOWN_MODEL)
        await self._reach(0)
        self._chunks = list(chunks_of(self._script, replace(self._spec, job_input=self._input())))
        task = self._spec.task
        self.terms = AttemptTerms(
            job_id=self._spec.name.id if self._spec.name else self._spec.job_id or _JOB_ID,
            node=NODE_KEY.peer_id,
            attempts=1,
            model_digest=DIGESTS[task],
            price=PRICE,
            ceiling_nano=1_000,
            input_units=Units(7, cached_tokens=self._script.cached_tokens),
            queue_position=0,
            lease_ms=self._script.lease_ms,
            match_us=42,
            features=self._market.windows.features if self._market.windows is not None else (),
        )

    def _input(self) -> JobInput:
        """As the node computes it."""
        job_input = self._spec.job_input
        if not isinstance(job_input, TensorInput):
            return job_input
        if self._market.windows is not None:
            try:
                job_input = self._market.windows.enter("job", "client", job_input)
            except RemoteProtocolError as error:
                raise JobFailed(str(error), code=error.code) from None
        self._market.computed.append(job_input)
        return job_input

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        index = self._next
        if index:
            await self._reach(index)
        if index == len(self._chunks):
            self.result = _outcome(self._script, self._spec, self._chunks)
            if self._market.windows is not None:
                self._market.windows.note_events([Completed("job", "complete", Units())])
            raise StopAsyncIteration
        self._next += 1
        return self._chunks[index]

    async def _reach(self, index: int) -> None:
        script = self._script
        if script.interval_s:
            await trio.sleep(script.interval_s)
        else:
            await trio.lowlevel.checkpoint()
        if script.gate_before == index:
            self._market.waiting.set()
            await self._market.gate.wait()
        fails = self._fails and script.failure is not None
        if fails and (script.failure_after or 0) == index:
            assert script.failure is not None
            raise script.failure


_JOB_ID = JobId(new_ulid(NOW_MS, bytes(10)))


def chunks_of(script: Script, spec: JobSpec) -> Iterator[Chunk]:
    if isinstance(spec.job_input, EmbeddingInput):
        given = script.vectors or (VECTOR,) * len(spec.job_input.texts)
        size = len(given[0])
        vectors = tuple(struct.pack(f"<{size}f", *vector) for vector in given)
        data = encode(EmbeddingOutput(size, vectors))
        # In two pieces, as a large one arrives.
        yield Chunk(data=data[:10])
        yield Chunk(data=data[10:])
    elif isinstance(spec.job_input, ImageInput):
        labels = (Label("military uniform", 0.75), Label("bow tie", 0.125))
        yield Chunk(data=encode(ClassificationOutput(labels[: spec.job_input.top_k])))
    elif isinstance(spec.job_input, TensorInput):
        yield Chunk(data=encode(sums_of(spec.job_input)))
    else:
        yield from _generation(script, spec.job_input)


def _generation(script: Script, job_input: GenerationInput) -> Iterator[Chunk]:
    """Token ids are counted up; a scored token was as likely as one other."""
    if job_input.tokenizes_only:
        text = job_input.prompt or "".join(message.content for message in job_input.messages)
        pieces = [bytes([sign]) for sign in text.encode()] or [b"ab\xf0"] * len(
            job_input.prompt_tokens
        )
        tokens = job_input.prompt_tokens or tuple(range(len(pieces)))
        yield Chunk(data=encode(TokensOutput(tokens, tuple(pieces))))
        return
    if job_input.prompt_logprobs is not None:
        words = (job_input.prompt or "a b").split(" ")
        yield Chunk(data=_scores(words, job_input.prompt_logprobs, is_prompt=True))
    for index, text in enumerate(script.tokens):
        data = b"" if job_input.logprobs is None else _scores([text], job_input.logprobs)
        yield Chunk((index,), text, data)


def _scores(texts: Sequence[str], top: int, *, is_prompt: bool = False) -> bytes:
    scores = []
    for number, text in enumerate(texts):
        likeliest = (Alternative(number, text.encode(), -0.5), Alternative(99, b"\xf0", -1e6))
        scores.append(TokenScore(number, text.encode(), -0.5, 0, likeliest[:top]))
    return encode(TokenScores(tuple(scores), is_prompt))


def sums_of(job_input: TensorInput) -> TensorOutput:
    """The tensor model: the sum of the numbers of each row after the context."""
    (tensor,) = job_input.inputs
    numbers = struct.unpack(f"<{tensor.elements}f", tensor.data)
    sums = [a + b for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    sums = sums[job_input.context_rows :]
    made = {
        "sum": NamedTensor(
            "sum", Datatype.FP32, (len(sums),), struct.pack(f"<{len(sums)}f", *sums)
        ),
        "name": NamedTensor(
            "name", Datatype.BYTES, (len(sums),), join_strings(f"{n:g}".encode() for n in sums)
        ),
    }
    return TensorOutput(tuple(made[name] for name in job_input.outputs or made))


def _outcome(script: Script, spec: JobSpec, chunks: list[Chunk]) -> PurchaseResult:
    if spec.task is Task.IMAGE_CLASSIFICATION:
        units = Units(images=1)
    elif isinstance(spec.job_input, TensorInput):
        units = Units(tensor_elements=spec.job_input.elements)
    else:
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        units = Units(7, tokens, cached_tokens=script.cached_tokens)
    lease_id = LeaseId(derive_ulid(_JOB_ID, "lease/0"))
    receipt = seal(
        NODE_KEY,
        Receipt(
            lease_id=lease_id,
            lease_digest=Digest("0" * 64),
            job_id=_JOB_ID,
            node=NODE_KEY.peer_id,
            client=CLIENT_KEY.peer_id,
            coordinator=COORDINATOR,
            model_digest=DIGESTS[spec.task],
            units=units,
            amount_nano=cost_nano(PRICE, units),
            output_digest=Digest("0" * 64),
            finish=script.finish if spec.task is Task.CAUSAL_LM else Finish.COMPLETE,
            code="",
            queued_ms=3,
            first_output_ms=5,
            total_ms=9,
            issued_at_ms=NOW_MS,
            end_stop=script.end_stop,
            end_token=script.end_token,
        ),
    )
    billed = receipt.message
    acceptance = seal(
        CLIENT_KEY,
        Acceptance(
            receipt_digest=receipt.digest,
            lease_id=lease_id,
            client=CLIENT_KEY.peer_id,
            units=units,
            output_digest=billed.output_digest,
            agrees=True,
            issued_at_ms=NOW_MS,
        ),
    )
    attempt = AttemptResult(billed.finish, units, billed.amount_nano, receipt, acceptance)
    return PurchaseResult.over(
        [PurchasePart.of(attempt, tokens_used=units.output_tokens)],
        billed.finish,
        reason=script.reason,
    )

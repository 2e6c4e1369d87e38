"""Decoding that runs ahead of the host: each step is one CUDA graph, and the next one starts before
the tokens of the last are read.

A graph reads and writes fixed addresses, so its inputs are buffers, for some numbers of rows
(buckets); it leaves its tokens where the next step reads them. The host only uploads noise keys,
and tables when a job takes a page. What ends a job is seen one step late: the surplus token is
dropped. Not seen on a GPU yet: tests capture nothing and run the same steps on a CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capanode.engines.decoder import DecoderModel
from capanode.engines.device_draw import draw
from capanode.engines.generation import Generation
from capanode.engines.noise import RowNoise, row_key_words
from capanode.engines.paged_attention import BufferedDecodeAttention, Kernel
from capanode.engines.paged_cache import PAGE_TOKENS, PagedCache

# Makes of a step what runs it again.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


def capture_cuda(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of the step. It is run before, because kernels are chosen at the first call."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class _Bucket:
    """The step for up to so many rows; rows that are not used write to the padding row's page."""

    def __init__(
        self, model: DecoderModel, cache: PagedCache, kernel: Kernel, rows: int, capture: Capture
    ) -> None:
        device, shape = cache.device, cache.shape
        self._padding = cache.pages_of(shape.rows - 1)[0]
        self._rows = rows
        width = -(-shape.context_tokens // PAGE_TOKENS)
        self._table = torch.full((rows, width), self._padding, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions, self._steps = (
            torch.zeros_like(self._tokens),
            torch.zeros_like(self._tokens),
        )
        self._temperatures = torch.zeros((rows, 1), device=device)
        self._keys = torch.zeros((rows, 2), dtype=torch.int32, device=device)
        attention = BufferedDecodeAttention(cache, self._table, model.config.attention, kernel)
        noise = RowNoise.of_keys(self._keys)

        def step() -> None:
            attention.set_positions(self._positions)
            logits, exact = model.next_logits(self._tokens, self._positions, attention)
            self._tokens.copy_(draw(logits, exact, self._temperatures, noise))
            self._positions.add_(self._steps)

        self._run = capture(step)

    def set_rows(self, jobs: Sequence[Generation]) -> None:
        """Begin with each job's last token."""
        padding = [0] * (self._rows - len(jobs))
        _fill(self._tokens, [job.tokens[-1] for job in jobs] + padding)
        _fill(self._positions, [len(job.tokens) - 1 for job in jobs] + padding)
        _fill(self._steps, [1] * len(jobs) + padding)
        temperatures = [0.0 if j.sampling.is_greedy else j.sampling.temperature for j in jobs]
        _fill(self._temperatures[:, 0], [*temperatures, *map(float, padding)])

    def set_tables(self, tables: Sequence[Sequence[int]]) -> None:
        width = self._table.shape[1]
        full = [[*table, *[self._padding] * (width - len(table))] for table in tables]
        full += [[self._padding] * width] * (self._rows - len(full))
        _fill(self._table, full)

    def launch(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """Run a step; its tokens are on their way into the tensor that is returned."""
        if keys:
            _fill(self._keys, [*keys, *[(0, 1)] * (self._rows - len(keys))])
        self._run()
        is_cuda = self._tokens.is_cuda
        tokens = torch.empty(self._rows, dtype=torch.int64, pin_memory=is_cuda)
        return tokens.copy_(self._tokens, non_blocking=is_cuda)


@dataclass(slots=True)
class _Flight:
    """A step whose tokens are not read yet."""

    jobs: list[Generation]
    tokens: Tensor
    arrived: torch.cuda.Event | None
    gone: set[str] = field(default_factory=set)

    def read(self) -> list[tuple[Generation, int]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens: list[int] = self.tokens.tolist()
        pairs = zip(self.jobs, tokens, strict=False)
        return [(job, token) for job, token in pairs if job.job_id not in self.gone]


class GraphSteps:
    """Decodes the jobs in rows 0..n of a `PagedCache`."""

    def __init__(
        self, model: DecoderModel, cache: PagedCache, kernel: Kernel, *, capture: Capture
    ) -> None:
        self._cache = cache
        slots = cache.shape.rows - 1
        # All at load: to capture one takes as long as many steps, which no answer should wait for.
        self._buckets = {
            rows: _Bucket(model, cache, kernel, rows, capture)
            for rows in (1 << power for power in range((slots - 1).bit_length() + 1))
        }
        self._bucket: _Bucket | None = None
        self._flight: _Flight | None = None

    @property
    def is_flying(self) -> bool:
        return self._flight is not None

    def step(self, jobs: Sequence[Generation]) -> list[tuple[Generation, int]]:
        """Start a step for these jobs, and return the tokens of the one before, if there was one.
        Where the jobs are not those of that step, it is only read."""
        flight, self._flight = self._flight, None
        if flight is None:
            self._begin(jobs)
            self._flight = self._launch(jobs, ahead=0)
            return []
        if self._goes_on(flight, jobs):
            self._flight = self._launch(jobs, ahead=1)
        return flight.read()

    def forget(self, job: Generation) -> None:
        """A job has lost its row: what is on its way for it is not its next token any more."""
        if self._flight is not None:
            self._flight.gone.add(job.job_id)

    def _begin(self, jobs: Sequence[Generation]) -> None:
        self._bucket = self._buckets[1 << (len(jobs) - 1).bit_length()]
        for row, job in enumerate(jobs):
            self._cache.reserve(row, len(job.tokens))
        self._bucket.set_rows(jobs)
        self._bucket.set_tables([self._cache.pages_of(row) for row in range(len(jobs))])

    def _goes_on(self, flight: _Flight, jobs: Sequence[Generation]) -> bool:
        """Whether the step after one that is not read yet can begin: the same jobs, each with room
        for two tokens more."""
        if flight.gone or len(jobs) != len(flight.jobs):
            return False
        if not all(job is other for job, other in zip(jobs, flight.jobs, strict=True)):
            return False
        if any(len(job.tokens) + 1 >= job.tokens_max for job in jobs):
            return False
        full = [row for row, job in enumerate(jobs) if len(job.tokens) % PAGE_TOKENS == 0]
        if len(full) > self._cache.pages.free_count:
            return False
        for row in full:
            self._cache.reserve(row, len(jobs[row].tokens) + 1)
        if full:
            assert self._bucket is not None
            self._bucket.set_tables([self._cache.pages_of(row) for row in range(len(jobs))])
        return True

    def _launch(self, jobs: Sequence[Generation], *, ahead: int) -> _Flight:
        assert self._bucket is not None
        is_drawn = any(not job.sampling.is_greedy for job in jobs)
        keys = [row_key_words(j.sampling.seed, j.draw_index + ahead) for j in jobs]
        tokens = self._bucket.launch(keys if is_drawn else [])
        arrived = None
        if tokens.is_pinned():
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            arrived.record()
        return _Flight(list(jobs), tokens, arrived)


def runs_ahead(jobs: Sequence[Generation]) -> bool:
    """Whether the next tokens of all these jobs can be drawn without a look from the host."""
    return all(
        job.rules is None
        and job.logprobs is None
        and not job.scores_prefix
        and (job.sampling.is_greedy or not job.sampling.is_filtered)
        for job in jobs
    )


def _fill(buffer: Tensor, values: Sequence[object]) -> None:
    """Upload without waiting for it."""
    plain = torch.tensor(values, dtype=buffer.dtype)
    buffer.copy_(plain.pin_memory() if buffer.is_cuda else plain, non_blocking=buffer.is_cuda)

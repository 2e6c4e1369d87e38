"""Llama and what descends from it as plain torch functions, laid out for decoding on few CPU cores.

`capanode.engines.families` says what is run. At one stream the small operations beside a layer's
four products are a third of the time, hence the care about each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.attending import JobCache, prompt_attention
from capanode.engines.attention import (
    Attention,
    DraftAttention,
    NextAttention,
    PrefillChunk,
    ReplayAttention,
)
from capanode.engines.decoder_builder import DecoderBuilder
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.exact_logits import ExactLogits, bend
from capanode.engines.grouped_linear import CodesFor
from capanode.engines.linear import (
    INVARIANT_ROWS,
    many_rows_up_to,
    padded_many_rows,
    padded_rows,
    rows_up_to,
)
from capanode.engines.profile import DTYPE_NAMES
from capanode.engines.rope import rope_tables
from capanode.engines.weight_scheme import WeightScheme
from capanode.engines.weights import Weights

# What a receipt's profile says of the weights that computed an answer.
_PACKED = {
    CodesFor.NOTHING: "",
    CodesFor.ANSWERS: "-packed-answers",
    CodesFor.ALL: "-packed",
}


class DecoderModel:
    """Weights and the forward passes. Holds no state of any job: that is the cache's."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        *,
        device: torch.device,
        dtype: torch.dtype,
        context_tokens: int,
        scheme: WeightScheme | None = None,
        slots: int = INVARIANT_ROWS,
    ) -> None:
        """`scheme` is how the files hold matrices, None where they are plain; `slots` how many
        answers there may be at a time."""
        self.config = config
        self.device, self.dtype = device, dtype
        build = DecoderBuilder(config, weights, scheme, device=device, dtype=dtype, slots=slots)
        self._embedding = build.embedding()
        self._embedding_scale = build.embedding_scale()
        self._layers = [build.layer(index) for index in range(config.layers)]
        self._norm = build.norm("model.norm.weight")
        self._head = build.head(self._embedding)
        # In the words of an offer, and of a receipt.
        self.quantization = scheme.name if scheme is not None else DTYPE_NAMES[dtype]
        self.weights_name = self.quantization + _PACKED[build.codes]
        # A processor's products with codes give a row the same bits in any number of rows.
        self._is_padded = device.type != "cpu" or not build.has_codes_alone
        # Other heads are kept in a form that single rows cannot be read from.
        is_rounded = dtype != torch.float32
        self._head_rows = self._embedding if config.ties_embeddings and is_rounded else None
        self._tables = [
            rope_tables(rope, config.head_dim, context_tokens, dtype, device)
            for rope in config.ropes
        ]
        # Which of a token's heads are rotated (queries and keys: 0) and which are not (values: 1).
        kinds = [0] * config.heads + [0, 1] * config.kv_heads
        self._kinds = torch.tensor(kinds, device=device)

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        attention: NextAttention | DraftAttention,
    ) -> tuple[Tensor, ExactLogits | None]:
        """The next logits [n, vocab] behind each token, which stand at `positions` of the rows that
        `attention` serves, and where they are rounded what that took."""
        count = len(tokens)
        padding = self._padding(count)
        place = torch.tensor([*positions, *padding], device=self.device)
        attention.set_positions(place[:count])
        hidden = self._run(torch.tensor([*tokens, *padding], device=self.device), place, attention)
        return self._next(hidden, count)

    def next_logits(
        self, tokens: Tensor, positions: Tensor, attention: NextAttention
    ) -> tuple[Tensor, ExactLogits | None]:
        """As `decode`, for tokens and positions that are on the device and are not padded."""
        return self._next(self._run(tokens, positions, attention), len(tokens))

    def replay(
        self, tokens: Sequence[int], start: int, attention: ReplayAttention
    ) -> tuple[Tensor, ExactLogits | None]:
        """Take in up to `INVARIANT_ROWS` tokens of one job, the first at position `start`, as they
        were decoded before; returns as `decode` the logits after the last one, [1, vocab]."""
        count = len(tokens)
        padding = self._padding(count)
        place = torch.tensor([*range(start, start + count), *padding], device=self.device)
        attention.set_positions(place[:count])
        hidden = self._run(torch.tensor([*tokens, *padding], device=self.device), place, attention)
        return self._next(hidden[count - 1 : count], 1)

    def prefill(
        self,
        chunks: Sequence[tuple[PrefillChunk, Sequence[int]]],
        cache: JobCache,
        *,
        padding_row: int,
        wanted: Sequence[int],
        scored: Sequence[int] = (),
    ) -> tuple[Tensor, ExactLogits | None, list[Tensor]]:
        """Take chunks of prompts into the cache; returns as `decode` the logits after the last
        token of those chunks that are `wanted`, and what `logits` takes for all tokens of those
        that are `scored`. `padding_row` is a row of the cache to spoil."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        ends: list[int] = []
        for chunk, ids in chunks:
            tokens += ids
            positions += range(chunk.start, chunk.start + chunk.count)
            rows += [chunk.row] * chunk.count
            ends.append(len(tokens) - 1)
        padding = [0] * (padded_many_rows(len(tokens)) - len(tokens))
        place = torch.tensor(positions + padding, device=self.device)
        attention = prompt_attention(
            cache,
            [chunk for chunk, _ in chunks],
            rows + [padding_row] * len(padding),
            positions + padding,
            self.config.attention,
        )
        hidden = self._run(torch.tensor(tokens + padding, device=self.device), place, attention)
        kept = [
            hidden[ends[index] + 1 - chunks[index][0].count : ends[index] + 1] for index in scored
        ]
        if not wanted:
            return hidden.new_empty((0, self.config.vocab_size)), None, kept
        rows = [ends[index] for index in wanted]
        last = hidden[torch.tensor(rows, device=self.device)]
        return *self._next(last, len(wanted)), kept

    def _padding(self, count: int) -> list[int]:
        """Tokens beside `count` that are decoded, so that the products give these the bits that
        they give them in any other step."""
        return [0] * (padded_rows(count) - count) if self._is_padded else []

    def _next(self, hidden: Tensor, count: int) -> tuple[Tensor, ExactLogits | None]:
        """After the first `count` of `hidden`."""
        missing = padded_rows(len(hidden)) - len(hidden) if self.device.type == "cpu" else 0
        states = self._norm(functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden)
        logits = self._head(states)[:count]
        softcap = self.config.logit_softcap
        if softcap is not None:
            logits = bend(logits, softcap)
        if self._head_rows is None:
            return logits, None
        return logits, ExactLogits(logits, states[:count], self._head_rows, softcap=softcap)

    def logits(self, hidden: Tensor) -> tuple[Tensor, ExactLogits | None]:
        """As `decode`, after each of a few tokens that `prefill` has kept."""
        return self._next(hidden, len(hidden))

    def warm_up(self, rows_max: int, prefill_tokens_max: int) -> None:
        """Run each product once for each number of rows to come: oneDNN compiles a kernel for each,
        half a millisecond that would otherwise delay an answer."""
        layer, config = self._layers[0], self.config
        few = rows_up_to(rows_max)
        shapes = (
            (layer.qkv, config.hidden_size),
            (layer.output, config.heads * config.head_dim),
            (layer.gate_up, config.hidden_size),
            (layer.down, config.intermediate_size),
        )
        for rows in (*few, *many_rows_up_to(prefill_tokens_max)):
            for linear, columns in shapes:
                linear(torch.zeros((rows, columns), dtype=self.dtype, device=self.device))
        for rows in few:
            hidden = torch.zeros((rows, config.hidden_size), dtype=self.dtype, device=self.device)
            self._head(hidden)

    def _run(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        rotations = [
            (
                cosines[positions].index_select(1, self._kinds),
                sines[positions].index_select(1, self._kinds),
            )
            for cosines, sines in self._tables
        ]
        hidden = functional.embedding(tokens, self._embedding)
        if self._embedding_scale is not None:
            hidden = hidden * self._embedding_scale
        for index, (layer, rope) in enumerate(
            zip(self._layers, self.config.layer_ropes, strict=True)
        ):
            rotation = None if rope is None else rotations[rope]
            hidden = layer(index, hidden, rotation, attention)
        return hidden

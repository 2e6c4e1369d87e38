"""The Llama architecture as plain torch functions, laid out for decoding on a few CPU cores.

Also runs what differs from Llama only in its config or biases (SmolLM2, Qwen2, Mistral without a
sliding window). Query, key and value weights are one matrix, and gate and up another, so a layer is
four products and about fifteen small operations; at one stream those small ones are a third of the
time, hence the care about each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.attention import (
    Attention,
    DecodeAttention,
    PrefillAttention,
    PrefillChunk,
    ReplayAttention,
)
from capanode.engines.decoder_config import DecoderConfig, rope_frequencies
from capanode.engines.exact_logits import ExactLogits
from capanode.engines.kv_cache import KvCache
from capanode.engines.linear import (
    Linear,
    make_linear,
    many_rows_up_to,
    padded_many_rows,
    padded_rows,
    rows_up_to,
)
from capanode.engines.weights import Weights


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight.clone(), eps
        self._shape = (2, *weight.shape)
        self._twice = weight.expand(self._shape).contiguous()
        self._signs = torch.tensor([[1.0], [-1.0]], dtype=weight.dtype, device=weight.device)
        self._on_cpu = weight.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        if not self._on_cpu:
            return functional.rms_norm(x, self._weight.shape, self._weight, self._eps)
        # torch 2.13 has no fused kernel for this on CPU, but one for layer norm. Over x and -x side
        # by side the mean is 0 and the variance is mean(x^2): the same numbers in half the time.
        both = x.unsqueeze(1) * self._signs
        return functional.layer_norm(both, self._shape, self._twice, None, self._eps)[:, 0]


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: RmsNorm
    qkv: Linear  # query heads, then key 0, value 0, key 1, value 1, ... as in the cache
    output: Linear
    mlp_norm: RmsNorm
    gate_up: Linear
    down: Linear


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
    ) -> None:
        self.config = config
        self.device, self.dtype = device, dtype
        build = _Builder(config, weights, device=device, dtype=dtype)
        self._embedding = build.embedding()
        self._layers = [build.layer(index) for index in range(config.layers)]
        self._norm = build.norm("model.norm.weight")
        self._head = build.head(self._embedding)
        # Other heads are kept in a form that single rows cannot be read from.
        is_rounded = dtype != torch.float32
        self._head_rows = self._embedding if config.ties_embeddings and is_rounded else None
        self._cosines, self._sines = _rope_tables(config, context_tokens, dtype, device)
        # Which of a token's heads are rotated (queries and keys: 0) and which are not (values: 1).
        kinds = [0] * config.heads + [0, 1] * config.kv_heads
        self._kinds = torch.tensor(kinds, device=device)

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], attention: DecodeAttention
    ) -> tuple[Tensor, ExactLogits | None]:
        """The next logits [n, vocab] for rows 0..n, whose last token stands at `positions`, and
        where they are rounded what that took."""
        count = len(tokens)
        padding = [0] * (padded_rows(count) - count)
        place = torch.tensor([*positions, *padding], device=self.device)
        attention.set_positions(place[:count])
        hidden = self._run(torch.tensor([*tokens, *padding], device=self.device), place, attention)
        return self._next(hidden, count)

    def replay(
        self, tokens: Sequence[int], start: int, attention: ReplayAttention
    ) -> tuple[Tensor, ExactLogits | None]:
        """Take in up to `INVARIANT_ROWS` tokens of one job, the first at position `start`, as they
        were decoded before; returns as `decode` the logits after the last one, [1, vocab]."""
        count = len(tokens)
        padding = [0] * (padded_rows(count) - count)
        place = torch.tensor([*range(start, start + count), *padding], device=self.device)
        attention.set_positions(place[:count])
        hidden = self._run(torch.tensor([*tokens, *padding], device=self.device), place, attention)
        return self._next(hidden[count - 1 : count].repeat(padded_rows(1), 1), 1)

    def prefill(
        self,
        chunks: Sequence[tuple[PrefillChunk, Sequence[int]]],
        cache: KvCache,
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
        attention = PrefillAttention(
            cache,
            [chunk for chunk, _ in chunks],
            torch.tensor(rows + [padding_row] * len(padding), device=self.device),
            place,
            self.config.attention,
        )
        hidden = self._run(torch.tensor(tokens + padding, device=self.device), place, attention)
        kept = [
            hidden[ends[index] + 1 - chunks[index][0].count : ends[index] + 1] for index in scored
        ]
        if not wanted:
            return hidden.new_empty((0, self.config.vocab_size)), None, kept
        rows = [ends[index] for index in wanted]
        rows += rows[:1] * (padded_rows(len(wanted)) - len(wanted))
        last = hidden[torch.tensor(rows, device=self.device)]
        return *self._next(last, len(wanted)), kept

    def _next(self, hidden: Tensor, count: int) -> tuple[Tensor, ExactLogits | None]:
        states = self._norm(hidden)
        logits = self._head(states)[:count]
        if self._head_rows is None:
            return logits, None
        return logits, ExactLogits(logits, states[:count], self._head_rows)

    def logits(self, hidden: Tensor) -> tuple[Tensor, ExactLogits | None]:
        """As `decode`, after each of a few tokens that `prefill` has kept."""
        rows = padded_rows(len(hidden))
        padded = functional.pad(hidden, (0, 0, 0, rows - len(hidden)))
        return self._next(padded, len(hidden))

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
        config = self.config
        count, inner, half = len(tokens), config.intermediate_size, config.head_dim // 2
        cosines = self._cosines[positions].index_select(1, self._kinds)
        sines = self._sines[positions].index_select(1, self._kinds)
        hidden = functional.embedding(tokens, self._embedding)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.attention_norm(hidden)).view(count, -1, config.head_dim)
            mixed = (qkv * cosines).addcmul_(torch.roll(qkv, half, -1), sines)
            hidden = layer.output(attention(index, mixed)).add_(hidden)
            gate_up = layer.gate_up(layer.mlp_norm(hidden))
            gate = torch.ops.aten.silu_(gate_up[:, :inner])
            # A new tensor and not in place: the product wants its input without gaps.
            hidden = layer.down(gate * gate_up[:, inner:]).add_(hidden)
        return hidden


class _Builder:
    """Takes tensors from the model's files into the layout that the forward pass wants."""

    def __init__(
        self, config: DecoderConfig, weights: Weights, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._config, self._weights = config, weights
        self._device, self._dtype = device, dtype

    def embedding(self) -> Tensor:
        shape = (self._config.vocab_size, self._config.hidden_size)
        # A copy: the files' mapping, and with it every weight's, would otherwise stay in memory.
        return self._take("model.embed_tokens.weight", *shape).clone()

    def head(self, embedding: Tensor) -> Linear:
        if self._config.ties_embeddings:
            return make_linear(embedding)
        shape = (self._config.vocab_size, self._config.hidden_size)
        return make_linear(self._take("lm_head.weight", *shape))

    def norm(self, name: str) -> RmsNorm:
        return RmsNorm(self._take(name, self._config.hidden_size), self._config.norm_eps)

    def layer(self, index: int) -> _Layer:
        config, name = self._config, f"model.layers.{index}"
        hidden, inner = config.hidden_size, config.intermediate_size
        queries = config.heads * config.head_dim
        return _Layer(
            attention_norm=self.norm(f"{name}.input_layernorm.weight"),
            qkv=self._qkv(f"{name}.self_attn"),
            output=self._linear(
                [f"{name}.self_attn.o_proj"], hidden, queries, config.has_output_bias
            ),
            mlp_norm=self.norm(f"{name}.post_attention_layernorm.weight"),
            gate_up=self._linear(
                [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"],
                inner,
                hidden,
                config.has_mlp_bias,
            ),
            down=self._linear([f"{name}.mlp.down_proj"], hidden, inner, config.has_mlp_bias),
        )

    def _qkv(self, name: str) -> Linear:
        config = self._config
        sizes = {"q_proj": config.heads, "k_proj": config.kv_heads, "v_proj": config.kv_heads}

        def fuse(kind: str, *columns: int) -> Tensor:
            query, key, value = (
                self._take(f"{name}.{part}.{kind}", count * config.head_dim, *columns).view(
                    count, config.head_dim, *columns
                )
                for part, count in sizes.items()
            )
            pairs = torch.stack((key, value), 1).flatten(0, 1)
            return torch.cat((query, pairs)).flatten(0, 1)

        bias = fuse("bias") if config.has_qkv_bias else None
        return make_linear(fuse("weight", config.hidden_size), bias)

    def _linear(self, names: Sequence[str], rows: int, columns: int, has_bias: bool) -> Linear:
        weight = torch.cat([self._take(f"{name}.weight", rows, columns) for name in names])
        if not has_bias:
            return make_linear(weight)
        return make_linear(weight, torch.cat([self._take(f"{name}.bias", rows) for name in names]))

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape, self._dtype).to(self._device)


def _rope_tables(
    config: DecoderConfig, context_tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, [context, 2, head_dim]: plane 0 rotates, plane 1 leaves as it is.

    With the sign in the sines, rotating is `x * cos + roll(x, half) * sin`.
    """
    angles = torch.arange(context_tokens).float()[:, None] * rope_frequencies(config)
    cosines, sines = angles.cos(), angles.sin()
    rotating = torch.cat((cosines, cosines), 1), torch.cat((-sines, sines), 1)
    still = torch.ones_like(rotating[0]), torch.zeros_like(rotating[1])
    tables = (torch.stack(pair, 1).to(device, dtype) for pair in zip(rotating, still, strict=True))
    return tuple(tables)  # type: ignore[return-value]  # a pair from a pair

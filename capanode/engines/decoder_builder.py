"""Takes tensors from a model's files into the layout that a decoder's forward pass wants."""

from collections.abc import Mapping

import torch
from torch import Tensor

from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.decoder_layer import DecoderLayer
from capanode.engines.grouped_linear import CodesFor, codes_for, make_matrix_linear
from capanode.engines.grouped_matrix import join_matrices
from capanode.engines.linear import Linear, make_linear
from capanode.engines.norms import HeadNorms, RmsNorm
from capanode.engines.quantized_weights import MatrixReader
from capanode.engines.rope import rotated_order
from capanode.engines.weight_scheme import WeightScheme
from capanode.engines.weights import Weights


class DecoderBuilder:
    """All methods raise ModelLoadError if a tensor is missing or has another shape."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Weights,
        scheme: WeightScheme | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        slots: int,
    ) -> None:
        self._config, self._weights = config, weights
        self._matrices = MatrixReader(weights, scheme, dtype)
        self._device, self._dtype = device, dtype
        self._codes = codes_for(2 * config.matrix_values, device, slots=slots)
        self._has_codes, self._has_others = False, False
        # Where a rotation covers part of each head, all of the model's do: one order serves all.
        self._order = rotated_order(config.head_dim, config.ropes[0].channels)
        self._qkv_rows = _qkv_rows(config, self._order)

    @property
    def codes(self) -> CodesFor:
        """Which products of what was built compute with codes."""
        return self._codes if self._has_codes else CodesFor.NOTHING

    @property
    def has_codes_alone(self) -> bool:
        """Whether all products of what was built compute with codes, but for a tied head."""
        return self._has_codes and not self._has_others

    def embedding(self) -> Tensor:
        shape = (self._config.vocab_size, self._config.hidden_size)
        # A copy: the files' mapping, and with it every weight's, would otherwise stay in memory.
        return self._take("model.embed_tokens.weight", *shape).clone()

    def embedding_scale(self) -> Tensor | None:
        """Rounded as the weights are (Gemma's own code does so), None where it is 1."""
        scale = self._config.embedding_scale
        return None if scale == 1.0 else torch.tensor(scale, dtype=self._dtype, device=self._device)

    def head(self, embedding: Tensor) -> Linear:
        if self._config.ties_embeddings:
            return make_linear(embedding)
        return self._linear(
            {"lm_head": self._config.vocab_size}, self._config.hidden_size, has_bias=False
        )

    def norm(self, name: str, size: int | None = None) -> RmsNorm:
        weight = self._take(name, size or self._config.hidden_size)
        return self._norm(weight)

    def layer(self, index: int) -> DecoderLayer:
        config, name = self._config, f"model.layers.{index}"
        has_outputs = config.has_output_norms
        after_attention = f"{name}.post_attention_layernorm.weight"
        before_mlp = f"{name}.pre_feedforward_layernorm.weight" if has_outputs else after_attention
        after_mlp = f"{name}.post_feedforward_layernorm.weight"
        return DecoderLayer(
            attention_norm=self.norm(f"{name}.input_layernorm.weight"),
            qkv=self._qkv(f"{name}.self_attn"),
            head_norms=self._head_norms(f"{name}.self_attn") if config.has_head_norms else None,
            output=self._linear(
                {f"{name}.self_attn.o_proj": config.hidden_size},
                config.heads * config.head_dim,
                has_bias=config.has_output_bias,
            ),
            output_norm=self.norm(after_attention) if has_outputs else None,
            mlp_norm=self.norm(before_mlp),
            gate_up=self._gate_up(f"{name}.mlp"),
            down=self._linear(
                {f"{name}.mlp.down_proj": config.hidden_size},
                config.intermediate_size,
                has_bias=config.has_mlp_bias,
            ),
            down_norm=self.norm(after_mlp) if has_outputs else None,
            activation=config.activation,
            head_dim=config.head_dim,
        )

    def _qkv(self, name: str) -> Linear:
        config = self._config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        if config.has_fused_weights:
            sizes = {f"{name}.qkv_proj": queries + 2 * keys}
        else:
            sizes = {f"{name}.q_proj": queries, f"{name}.k_proj": keys, f"{name}.v_proj": keys}
        return self._linear(
            sizes, config.hidden_size, has_bias=config.has_qkv_bias, rows=self._qkv_rows
        )

    def _gate_up(self, name: str) -> Linear:
        config = self._config
        inner = config.intermediate_size
        if config.has_fused_weights:
            sizes = {f"{name}.gate_up_proj": 2 * inner}
        else:
            sizes = {f"{name}.gate_proj": inner, f"{name}.up_proj": inner}
        return self._linear(sizes, config.hidden_size, has_bias=config.has_mlp_bias)

    def _linear(
        self,
        sizes: Mapping[str, int],
        columns: int,
        *,
        has_bias: bool,
        rows: Tensor | None = None,
    ) -> Linear:
        """The matrices of these modules (with their numbers of rows) one below another, in the
        order `rows` if there is one."""
        parts = [self._matrices.take(name, count, columns) for name, count in sizes.items()]
        matrix = join_matrices(parts, self._dtype)
        bias = None
        if has_bias:
            bias = torch.cat([self._take(f"{name}.bias", n) for name, n in sizes.items()])
        if rows is not None:
            matrix = matrix[rows]
            bias = None if bias is None else bias[rows.to(self._device)]
        linear, has_codes = make_matrix_linear(
            matrix.to(self._device), bias, self._dtype, codes=self._codes
        )
        self._has_codes |= has_codes
        self._has_others |= not has_codes
        return linear

    def _head_norms(self, name: str) -> HeadNorms:
        width = self._config.head_dim
        queries, keys = (
            self._norm(self._take(f"{name}.{part}.weight", width)[self._order])
            for part in ("q_norm", "k_norm")
        )
        return HeadNorms(queries, keys, heads=self._config.heads)

    def _norm(self, weight: Tensor) -> RmsNorm:
        if self._config.has_offset_norms:
            weight = 1.0 + weight.float()
        return RmsNorm(weight, self._config.norm_eps, dtype=self._dtype)

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape, self._dtype).to(self._device)


def _qkv_rows(config: DecoderConfig, order: Tensor) -> Tensor:
    """Where each row of the product is in query, key and value weights one below another: query
    heads first, then key 0, value 0, key 1, ... as in the cache. Values are not rotated."""
    size = config.head_dim
    rows = torch.arange((config.heads + 2 * config.kv_heads) * size).view(-1, size)
    queries, both = rows[: config.heads], rows[config.heads :]
    keys, values = both.chunk(2)
    pairs = torch.stack((keys[:, order], values), 1).flatten(0, 1)
    return torch.cat((queries[:, order], pairs)).flatten()

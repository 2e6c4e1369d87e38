"""A model that is made on the spot: whatever it is asked, it recites one text.

It is a real Llama to the node: real weights, tokenizer and sandboxed worker. It is small, so that a
node that was killed serves again within seconds on a busy machine and two cores answer twenty
clients; and since its answer is known, a token that is lost or doubled is seen.
"""

import json
import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from capanode.models.store import ModelStore
from protocol.ids import sha256_digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.messages import Task
from sim.byte_tokenizer import write_byte_tokenizer

NAME = "recital"
# No character twice: the next token follows from the last one alone.
RECITAL = string.ascii_letters + string.digits + "!#$%&()*+,-./:;<=>?@[]^_{|}~"

_END, _ANSWER = 256, 257
_VOCAB = 272
_HEADS = 4
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCAB,
    "hidden_size": _VOCAB,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": 16,
    "max_position_embeddings": 1_024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": _END,
    "dtype": "float32",
}
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}<|answer|>"


def add_recital(store: ModelStore, *, chat_template: str = _TEMPLATE) -> None:
    """Put the model into a store, under `NAME`."""
    with store.scratch() as folder:
        (folder / "config.json").write_text(json.dumps(_CONFIG))
        special = {_END: "<|end|>", _ANSWER: "<|answer|>"}
        write_byte_tokenizer(folder, special, end="<|end|>", chat_template=chat_template)
        save_file(_weights(), folder / "model.safetensors")
        manifest = ModelManifest(
            name=NAME,
            task=Task.CAUSAL_LM,
            architecture="LlamaForCausalLM",
            files=tuple(_file(path) for path in sorted(folder.iterdir())),
            dtype="float32",
            quantization="none",
            context_tokens=_CONFIG["max_position_embeddings"],
            licence="Apache-2.0",
            source="made by sim.chaos",
        )
        store.add(folder, manifest, name=NAME)


def _file(path: Path) -> ModelFile:
    data = path.read_bytes()
    return ModelFile(path.name, sha256_digest(data), len(data))


def _weights() -> dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]:
    """Unit vectors in; attention and MLP add nothing; the head looks up the token that follows."""
    inner, heads_width = _CONFIG["intermediate_size"], _HEADS * _CONFIG["head_dim"]
    shapes = {
        "self_attn.q_proj": (heads_width, _VOCAB),
        "self_attn.k_proj": (heads_width, _VOCAB),
        "self_attn.v_proj": (heads_width, _VOCAB),
        "self_attn.o_proj": (_VOCAB, heads_width),
        "mlp.gate_proj": (inner, _VOCAB),
        "mlp.up_proj": (inner, _VOCAB),
        "mlp.down_proj": (_VOCAB, inner),
    }
    weights = {
        "model.embed_tokens.weight": np.eye(_VOCAB, dtype=np.float32),
        "model.norm.weight": np.ones(_VOCAB, dtype=np.float32),
        "lm_head.weight": np.zeros((_VOCAB, _VOCAB), dtype=np.float32),
    }
    for layer in range(_CONFIG["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = np.ones(_VOCAB, dtype=np.float32)
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = np.zeros(shape, dtype=np.float32)
    for before, after in pairwise((_ANSWER, *RECITAL.encode(), _END)):
        weights["lm_head.weight"][after, before] = 1.0
    return weights

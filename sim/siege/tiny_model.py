"""A small language model made on the spot: random weights, one token per byte.

It says nothing sensible, but it is loaded in a moment and run by the real engine.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

# A chat template that tells what it refuses, as real ones do.
TELLING_TEMPLATE = (
    "{% for message in messages %}"
    "{% if 'forbidden' in message['content'] %}"
    "{{ raise_exception('this is not answered: ' + message['content']) }}"
    "{% endif %}{{ message['content'] }}<|end|>{% endfor %}"
)

_BYTES = 256
_END = _BYTES
_VOCABULARY = 272
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": _VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": _END,
    "dtype": "float32",
}


def write_tiny_model(folder: Path, *, chat_template: str = TELLING_TEMPLATE) -> None:
    """A folder as a model's maker publishes it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    settings = {"eos_token": "<|end|>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(_weights(), folder / "model.safetensors")


def _tokenizer() -> dict[str, Any]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    end = {
        "id": _END,
        "content": "<|end|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)

    def random(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

    hidden, inner = _CONFIG["hidden_size"], _CONFIG["intermediate_size"]
    queries = _CONFIG["num_attention_heads"] * _CONFIG["head_dim"]
    keys = _CONFIG["num_key_value_heads"] * _CONFIG["head_dim"]
    ones = np.ones(hidden, np.float32)
    weights = {"model.embed_tokens.weight": random(_VOCABULARY, hidden), "model.norm.weight": ones}
    for layer in range(_CONFIG["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": ones.copy(),
            f"{name}.post_attention_layernorm.weight": ones.copy(),
            f"{name}.self_attn.q_proj.weight": random(queries, hidden),
            f"{name}.self_attn.k_proj.weight": random(keys, hidden),
            f"{name}.self_attn.v_proj.weight": random(keys, hidden),
            f"{name}.self_attn.o_proj.weight": random(hidden, queries),
            f"{name}.mlp.gate_proj.weight": random(inner, hidden),
            f"{name}.mlp.up_proj.weight": random(inner, hidden),
            f"{name}.mlp.down_proj.weight": random(hidden, inner),
        }
    return weights

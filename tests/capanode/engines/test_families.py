"""Each family of decoders against transformers' own model of it, on the same random weights.

Configs are spelled as the families' published files spell them; transformers writes the newer form.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from capanode.engines.attention import DecodeAttention, PrefillChunk
from capanode.engines.base import ModelLoadError
from capanode.engines.families import FAMILIES, read_decoder_config
from capanode.tasks import DECODERS
from tests.capanode.engines.test_decoder import load_model

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
}
WINDOW = 8
PROMPT = [int(token) for token in torch.randint(96, (31,), generator=torch.manual_seed(5))]

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral-window": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": WINDOW,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "qwen2-window": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "sliding_window": WINDOW,
        "use_sliding_window": True,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 32,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "cache_implementation": "hybrid",
        "head_dim": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": WINDOW,
        "sliding_window_size": None,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 100,
        "rope_theta": 10_000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
    },
    "phi3-window": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "embd_pdrop": 0.0,
        "original_max_position_embeddings": 128,
        "rope_scaling": None,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
    "phi4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "attention_bias": False,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
            "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 9.0],
        },
        "sliding_window": None,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "attention_bias": False,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 0, 1, 0],
        "layer_types": ["full_attention"] * 4,
        "rope_theta": 50_000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}


def write_family(folder: Path, name: str, **changes: Any) -> Any:
    """A random model of the family in `folder`; returns transformers' model of it."""
    # Imported here because it takes two seconds, which the other tests need not wait for.
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    plain = {**SIZES, **CONFIGS[name], **changes}
    (folder / "config.json").write_text(json.dumps(plain))
    config = AutoConfig.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in reference.state_dict().values():
        # Large enough for attention to choose, and for softcaps to bend.
        scale = 2.0 * float(tensor.shape[-1]) ** -0.5 if tensor.dim() > 1 else 0.3
        tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)
    state = dict(reference.state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    return reference


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_familys_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    # The context of a test's model is 128: more than Phi-4-mini's original one here. Transformers
    # takes the long factors only for a text that is longer, ours for a context that is.
    long = [1, *PROMPT, *PROMPT, *PROMPT]
    prompt = long if name == "phi4-mini" else PROMPT
    reference = write_family(tmp_path, name)
    expected = reference(torch.tensor([prompt])).logits[0]
    model, cache = load_model(tmp_path)

    cuts = (0, len(prompt) // 3, len(prompt) - 4)
    for start, end in pairwise(cuts):
        chunk = (PrefillChunk(1, start, end - start), prompt[start:end])
        logits, _, _ = model.prefill([chunk], cache, padding_row=4, wanted=[0])
        torch.testing.assert_close(logits[0], expected[end - 1], atol=5e-4, rtol=1e-4)
    cache.move(1, 0, cuts[-1], 0)
    for at in range(cuts[-1], len(prompt)):
        attention = DecodeAttention(cache, [at + 1], model.config.attention)
        logits, _ = model.decode([prompt[at]], [at], attention)
        torch.testing.assert_close(logits[0], expected[at], atol=5e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_transformers_wrote_means_the_same(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig  # noqa: PLC0415

    plain = {**SIZES, **CONFIGS[name]}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written != plain
    assert read_decoder_config(written) == read_decoder_config(plain)


def test_phi_takes_its_short_factors_where_its_context_is_short(tmp_path: Path) -> None:
    reference = write_family(tmp_path, "phi4-mini", original_max_position_embeddings=128)
    model, cache = load_model(tmp_path)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]
        chunk = (PrefillChunk(0, 0, len(PROMPT)), PROMPT)
        logits, _, _ = model.prefill([chunk], cache, padding_row=4, wanted=[0])
    torch.testing.assert_close(logits[0], expected[-1], atol=5e-4, rtol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_gemmas_norms_keep_their_precision_in_bfloat16(tmp_path: Path) -> None:
    reference = write_family(tmp_path, "gemma3", torch_dtype="bfloat16")
    expected = reference(torch.tensor([PROMPT])).logits[0, -1]
    model, cache = load_model(tmp_path)
    chunk = (PrefillChunk(0, 0, len(PROMPT)), PROMPT)
    logits, _, _ = model.prefill([chunk], cache, padding_row=4, wanted=[0])
    assert logits.dtype == torch.bfloat16
    error = (logits[0].float() - expected).norm() / expected.norm()
    assert error < 0.05


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
        ("gemma3", {"hidden_activation": "relu"}, "hidden_activation"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("gemma3", {"layer_types": [[]] * 4}, "layer_types"),
        ("gemma3", {"rope_parameters": {"full_attention": 3}}, "rope_parameters"),
        ("gemma2", {"final_logit_softcapping": -1}, "final_logit_softcapping"),
        ("gemma2", {"sliding_window": 0}, "sliding_window"),
        ("phi4-mini", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("phi4-mini", {"partial_rotary_factor": 0.5}, "short_factor"),
        ("phi4-mini", {"rope_scaling": {"type": "longrope"}}, "short_factor"),
        ("phi4-mini", {"mlp_bias": True}, "mlp_bias"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, [2]]}, "no_rope_layers"),
        ("qwen2-window", {"sliding_window": None}, "sliding_window"),
        ("qwen3", {"num_experts": 64}, "num_experts"),
        ("mistral-window", {"attention_bias": True}, "attention_bias"),
    ],
)
def test_what_a_family_does_not_run_is_refused_by_name(
    name: str, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelLoadError, match=complaint):
        read_decoder_config({**SIZES, **CONFIGS[name], **changes})


def test_the_store_admits_the_families_that_are_run() -> None:
    assert set(DECODERS) == set(FAMILIES)

"""Our forward pass against transformers' own, on the same random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines.attention import DecodeAttention, PrefillChunk
from capanode.engines.base import ModelLoadError
from capanode.engines.decoder import DecoderModel
from capanode.engines.families import read_decoder_config
from capanode.engines.kv_cache import CacheShape, KvCache
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.engines.weights import DTYPES, Weights
from tests.capanode.engines.tiny_models import LLAMA, write_llama

CPU = torch.device("cpu")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [70, 71, 72], [200] * 40 + [7]]


def load_model(folder: Path, *, slots: int = 32) -> tuple[DecoderModel, KvCache]:
    plain = json.loads((folder / "config.json").read_text())
    config, scheme = read_decoder_config(plain), read_weight_scheme(plain)
    dtype = DTYPES[config.dtype_name]
    model = DecoderModel(
        config,
        Weights(folder),
        device=CPU,
        dtype=dtype,
        context_tokens=128,
        scheme=scheme,
        slots=slots,
    )
    shape = CacheShape(config.layers, 5, config.kv_heads, 128, config.head_dim, dtype)
    return model, KvCache(shape, device=CPU)


def reference_logits(folder: Path, prompts: list[list[int]]) -> list[torch.Tensor]:
    # Imported here because it takes two seconds, which the other tests need not wait for.
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        return [reference(torch.tensor([prompt])).logits[0] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=["gqa-tied", "mha-untied", "qwen2-biases", "mistral", "llama3-rope"],
)
@torch.inference_mode()
def test_logits_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_llama(tmp_path, **changes)
    model, cache = load_model(folder)
    expected = reference_logits(folder, PROMPTS)

    # All but the last two tokens are prefilled, in two chunks of which the second has a past.
    for row, prompt in enumerate(PROMPTS):
        cut = (len(prompt) - 2) // 2
        first, second = prompt[:cut], prompt[cut:-2]
        model.prefill(
            [(PrefillChunk(row, 0, len(first)), first)] if first else [],
            cache,
            padding_row=4,
            wanted=[],
        )
        logits, _, _ = model.prefill(
            [(PrefillChunk(row, cut, len(second)), second)], cache, padding_row=4, wanted=[0]
        )
        torch.testing.assert_close(logits[0], expected[row][-3], atol=2e-4, rtol=1e-4)

    # The last two are decoded, with all rows together.
    for back in (2, 1):
        positions = [len(prompt) - back for prompt in PROMPTS]
        attention = DecodeAttention(cache, [p + 1 for p in positions], model.config.attention)
        logits, _ = model.decode([prompt[-back] for prompt in PROMPTS], positions, attention)
        for row, want in enumerate(expected):
            torch.testing.assert_close(logits[row], want[-back], atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_prompts_prefilled_together_give_the_numbers_of_each_alone(tmp_path: Path) -> None:
    model, cache = load_model(write_llama(tmp_path, dtype="bfloat16"))
    chunks = [(PrefillChunk(row, 0, len(prompt)), prompt) for row, prompt in enumerate(PROMPTS)]
    together, _, _ = model.prefill(chunks, cache, padding_row=4, wanted=[0, 1, 2])
    for row, piece in enumerate(chunks):
        alone, _, _ = model.prefill([piece], cache, padding_row=4, wanted=[0])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": ["PhiForCausalLM"]}, "architecture"),
        ({"architectures": []}, "architecture"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope type"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"dtype": "int8"}, "type"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"num_hidden_layers": 1 << 20}, "num_hidden_layers"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, "auto_map"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "beta": 2}}, "beta"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"vocab_size": 1 << 60}, "vocab_size"),
    ],
)
def test_a_config_that_is_not_run_exactly_is_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelLoadError, match=complaint):
        read_decoder_config({**LLAMA, **changes})

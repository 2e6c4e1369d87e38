"""The families of decoders that `capanode.engines.decoder` runs, one file for each.

A family reads its own config.json into a `DecoderConfig`; no other module knows its name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families.gemma import read_gemma2, read_gemma3
from capanode.engines.families.llama import read_llama, read_mistral
from capanode.engines.families.phi import read_phi3
from capanode.engines.families.qwen import read_qwen2, read_qwen3
from capanode.engines.families.smollm import read_smollm3

FAMILIES: Mapping[str, Callable[[ConfigFields], DecoderConfig]] = {
    "Gemma2ForCausalLM": read_gemma2,
    "Gemma3ForCausalLM": read_gemma3,
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "Phi3ForCausalLM": read_phi3,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
    "SmolLM3ForCausalLM": read_smollm3,
}


def read_decoder_config(plain: Mapping[str, Any]) -> DecoderConfig:
    """Raises ModelLoadError if the config is not one that `DecoderModel` runs exactly."""
    architectures = plain.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else "none"
    read = FAMILIES.get(named) if isinstance(named, str) else None
    if read is None:
        raise ModelLoadError(f"architecture {str(named)[:64]!r} is not run here")
    fields = ConfigFields(plain)
    if fields.get("auto_map") is not None:
        raise ModelLoadError("config.json wants to run code from the repository (auto_map)")
    # How the weights are stored is for `capanode.engines.weights` to check.
    fields.get("quantization_config")
    config = read(fields)
    fields.refuse_unread()
    return config

"""Reads a model's config.json field by field, and refuses by name what no reader asked for.

A field that is not read may change what the model computes, so a config is run only if each of its
fields was read, asks for nothing (null or false), or is known to change no answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capanode.engines.base import ModelLoadError

# Far above any dense model that one machine serves; keeps a hostile config from asking for memory.
_SIZE_MAX = 1 << 24

# They say how a model was trained, saved or is to be sampled. The engine reads the tokens that end
# an answer elsewhere, and a client chooses how to sample.
_HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "do_sample",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "max_length",
        "max_new_tokens",
        "model_max_length",
        "model_type",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "pruned_heads",
        "resid_pdrop",
        "return_dict",
        "sep_token_id",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)


class ConfigFields:
    """The fields of one JSON object. All readers raise ModelLoadError."""

    def __init__(self, plain: Mapping[str, Any], name: str = "config.json") -> None:
        self._plain, self._name = plain, name
        self._read: set[str] = set()

    def get(self, key: str) -> Any:
        """The raw value, None if there is none."""
        self._read.add(key)
        return self._plain.get(key)

    def ignore(self, keys: Iterable[str]) -> None:
        """Fields that change no answer of the model that asks."""
        self._read.update(keys)

    def size(self, key: str, default: int | None = None, *, most: int = _SIZE_MAX) -> int:
        """A natural number above 0."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= most:
            raise ModelLoadError(f"{self._name}: {key} is missing or out of range")
        return value

    def optional_size(self, key: str) -> int | None:
        return None if self.get(key) is None else self.size(key)

    def positive(self, key: str, default: float) -> float:
        value = self.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ModelLoadError(f"{self._name}: {key} is out of range")
        return float(value)

    def optional_positive(self, key: str, default: float | None = None) -> float | None:
        """A key that is there with the value null asks for nothing, whatever the default is."""
        if key not in self._plain:
            return default
        return None if self.get(key) is None else self.positive(key, 1.0)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not bool:
            raise ModelLoadError(f"{self._name}: {key} is neither true nor false")
        return value

    def word(self, key: str, default: str, known: Sequence[str]) -> str:
        """One of the `known` words."""
        value = self.get(key)
        value = default if value is None else value
        if value not in known:
            raise ModelLoadError(f"{self._name}: {key} {str(value)[:64]!r} is not run here")
        return str(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise ModelLoadError(f"{self._name}: {key} is not a list of {count} numbers")
        if not all(type(item) in (int, float) and 0 < item < float("inf") for item in value):
            raise ModelLoadError(f"{self._name}: {key} holds a number that is out of range")
        return tuple(float(item) for item in value)

    def section(self, key: str) -> "ConfigFields | None":
        """An object within; None if there is none. Check it by itself (`refuse_unread`)."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ModelLoadError(f"{self._name}: {key} is not an object")
        return ConfigFields(value, f"{self._name}: {key}")

    def refuse_unread(self) -> None:
        """Call when all has been read. Raises ModelLoadError with the names of what is left."""
        known = self._read | _HARMLESS
        unread = sorted(
            key
            for key, value in self._plain.items()
            if key not in known and value is not None and value is not False
        )
        if unread:
            names = ", ".join(repr(str(key)[:48]) for key in unread[:5])
            raise ModelLoadError(f"{self._name} asks for what is not run here: {names}")

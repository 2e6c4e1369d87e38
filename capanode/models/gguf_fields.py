"""The metadata of a GGUF file, read with a check: it is a stranger's."""

from typing import Any

import numpy as np

# Far above any model that one machine serves.
_NATURAL_MAX = 1 << 24
# The largest vocabulary in the field has about 260,000 tokens.
VOCABULARY_MAX = 1 << 20

Metadata = dict[str, Any]


class GgufFields:
    """Fields of one architecture. All readers raise ValueError."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))

    def get(self, key: str) -> Any:
        """The raw value, None if there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def natural(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"the GGUF file has no {self.architecture}.{key}")
        if type(value) is not int or not 0 < value <= _NATURAL_MAX:
            raise ValueError(f"{self.architecture}.{key} is out of range")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0, in its shortest decimal form: 1e-05 instead of
        9.999999747378752e-06."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"the GGUF file has no {self.architecture}.{key}")
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"{self.architecture}.{key} is out of range")
        return float(str(np.float32(value)))

    def token(self, role: str) -> int | None:
        """The id of a token by its role; None if there is none."""
        value = self.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise ValueError(f"the {role} token of the GGUF file is not one of its tokens")
        return value

    @property
    def tokens(self) -> list[str]:
        tokens = self.metadata.get("tokenizer.ggml.tokens", [])
        if not isinstance(tokens, list) or not 0 < len(tokens) <= VOCABULARY_MAX:
            raise ValueError("the GGUF file has no vocabulary, or too large a one")
        return tokens

"""Loading a model's tokenizer.json: the one way for all engines."""

from pathlib import Path

from tokenizers import Tokenizer

from capanode.engines.base import ModelLoadError
from capanode.engines.weights import JSON_BYTES_MAX


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer without the truncation and padding that its file may ask for: an engine that
    drops text in silence is wrong, and batches are padded to what they need.

    Raises ModelLoadError.
    """
    path = model_dir / "tokenizer.json"
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise ModelLoadError(f"tokenizer.json is longer than {JSON_BYTES_MAX} bytes")
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"tokenizer.json cannot be read: {error}") from error
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # The library raises bare Exception, whatever is wrong.
        raise ModelLoadError(f"tokenizer.json: {str(error)[:200]}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

"""A model's tokenizer: the one way for all engines to load it, and to use it on strangers' text.

Tokenizing is work that is done before a job is accepted, so for free. What it costs is bounded by
the tokens that a model takes and not by the size of the text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from tokenizers import Tokenizer

from capanode.engines.base import EngineRefusal, ModelLoadError
from capanode.engines.weights import JSON_BYTES_MAX
from protocol.errors import Code

# A longer text is first read in chunks of this many characters, until it is clear that it has too
# many tokens: about 2 ms and 1 MB each.
CHUNK_CHARS = 8_192

# A cut splits one word, and the halves may be more tokens than the whole: a word piece of a hundred
# characters at most, or a few merges of bytes.
_CUT_TOKENS_MAX = 256


class Encodes(Protocol):
    """What is used of a `tokenizers.Tokenizer`."""

    def encode(
        self, sequence: str, pair: str | None = None, *, add_special_tokens: bool
    ) -> "HasIds": ...

    def encode_batch(
        self, texts: list[str], /, *, add_special_tokens: bool
    ) -> "Sequence[HasIds]": ...


class HasIds(Protocol):
    @property
    def ids(self) -> list[int]: ...

    @property
    def type_ids(self) -> list[int]: ...


class BoundedTokenizer:
    """Turns a text into token ids, or refuses it after work that its size does not decide."""

    def __init__(self, tokenizer: Encodes, *, tokens_max: int, token_chars_max: int) -> None:
        """`tokens_max` are taken; a text with more than `token_chars_max` characters for each of
        them is not looked at."""
        self._tokenizer = tokenizer
        self._tokens_max = tokens_max
        self._chars_max = tokens_max * token_chars_max

    @property
    def chars_max(self) -> int:
        return self._chars_max

    def encode(self, text: str, *, adds_special: bool) -> list[int]:
        """Raises EngineRefusal (PROMPT_TOO_LONG). A panic in the library's Rust code passes as a
        BaseException: the worker's boundary takes it."""
        if len(text) > self._chars_max:
            self._refuse_chars(len(text))
        if len(text) > CHUNK_CHARS:
            self._check_chunks(text)
            # Other than `encode` it lets other threads go on meanwhile.
            (one,) = self._tokenizer.encode_batch([text], add_special_tokens=adds_special)
        else:
            one = self._tokenizer.encode(text, add_special_tokens=adds_special)
        ids = one.ids
        if len(ids) > self._tokens_max:
            self._refuse(len(ids))
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two texts as one input, with the marks between them: the ids, and for each 0 or 1 by the
        text that it is of. Raises as `encode`."""
        if len(first) + len(second) > self._chars_max:
            self._refuse_chars(len(first) + len(second))
        for text in (first, second):
            if len(text) > CHUNK_CHARS:
                self._check_chunks(text)
        pair = self._tokenizer.encode(first, second, add_special_tokens=True)
        if len(pair.ids) > self._tokens_max:
            self._refuse(len(pair.ids))
        return pair.ids, pair.type_ids

    def _refuse_chars(self, chars: int) -> NoReturn:
        raise EngineRefusal(
            "the text has {chars} characters; the model takes {limit} tokens",
            code=Code.PROMPT_TOO_LONG,
            chars=chars,
            limit=self._tokens_max,
        )

    def _check_chunks(self, text: str) -> None:
        """Refuse a text as soon as its beginning has too many tokens, however it was cut."""
        least = 0
        for start in range(0, len(text), CHUNK_CHARS):
            chunk = text[start : start + CHUNK_CHARS]
            count = len(self._tokenizer.encode(chunk, add_special_tokens=False).ids)
            least += max(0, count - _CUT_TOKENS_MAX)
            if least > self._tokens_max:
                self._refuse(least)

    def _refuse(self, tokens: int) -> NoReturn:
        raise EngineRefusal(
            "the text has {tokens} tokens or more; the model takes {limit}",
            code=Code.PROMPT_TOO_LONG,
            tokens=tokens,
            limit=self._tokens_max,
        )


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

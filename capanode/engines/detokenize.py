"""From token ids to text, token by token: never half a character, never what follows a stop string.

Tokens are bytes. Decoding them with an incremental UTF-8 decoder is exact and takes under a
microsecond, where asking the tokenizer to decode a growing window again and again takes twenty.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Sequence

from tokenizers import Tokenizer

from capanode.engines.base import ModelLoadError

_HEX_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """What each token of a vocabulary adds to the text. Special tokens add nothing, but for those
    that spell one of the `visible` marks."""

    def __init__(self, tokenizer: Tokenizer, *, visible: Collection[str] = ()) -> None:
        kinds = _decoder_kinds(tokenizer)
        to_bytes: Callable[[str], bytes]
        if "ByteLevel" in kinds:
            to_bytes = _read_byte_level
        elif kinds & {"ByteFallback", "Metaspace"}:
            to_bytes = _read_sentence_piece
        else:
            raise ModelLoadError(f"tokenizer decoder {sorted(kinds)} is not run here")
        # Sentence-piece words begin with their space; the answer's first one has none before it.
        self.drops_first_space = "ByteLevel" not in kinds
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        # No token, not even a special one, stands for more bytes of text than this.
        self.longest = max((len(token.encode()) for token in vocabulary), default=1)
        self._bytes = [b""] * (max(vocabulary.values(), default=0) + 1)
        self._hidden: dict[int, bytes] = {}
        for token, token_id in vocabulary.items():
            self._bytes[token_id] = to_bytes(token)
        for token_id, added in tokenizer.get_added_tokens_decoder().items():
            is_shown = not added.special or added.content in visible
            self._bytes[token_id] = added.content.encode() if is_shown else b""
            if not is_shown:
                self._hidden[token_id] = added.content.encode()

    def __getitem__(self, token_id: int) -> bytes:
        """Empty for ids that the vocabulary does not name (models pad their embeddings)."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def spelled(self, token_id: int) -> bytes:
        """The same, but for special tokens, which have a name though they add no text."""
        return self._hidden.get(token_id) or self[token_id]


class AnswerText:
    """One answer's visible text as its tokens arrive.

    Text that may turn out to be the beginning of a stop string is held back until it is not. How
    much has been released depends on the tokens alone and not on how they were cut into steps, so
    that an answer continued elsewhere repeats and omits nothing.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        stops: Sequence[str],
        *,
        opened: str = "",
        is_midway: bool = False,
        min_tokens: int = 0,
        includes_stop: bool = False,
    ) -> None:
        """The text begins with `opened`, which comes with the first token; if it `is_midway`, a
        word may go on. Stop strings are looked for from the token on that is number `min_tokens`;
        with `includes_stop` the text ends after the one that was found.
        """
        self._token_bytes = token_bytes
        self._unstoppable = max(0, min_tokens - 1)
        self._opened = opened
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._includes_stop = includes_stop
        self._held = ""
        self._at_start = token_bytes.drops_first_space and not is_midway
        # Which of the stop strings ended the text, once one has.
        self.stopped_by: int | None = None

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_id: int) -> str:
        """The text that this token releases."""
        opened, self._opened = self._opened, ""
        return opened + self._push(token_id)

    def _push(self, token_id: int) -> str:
        text = self._decoder.decode(self._token_bytes[token_id])
        if self._at_start and text:
            text = text.removeprefix(" ")
            self._at_start = False
        if self._unstoppable:
            self._unstoppable -= 1
            return text
        return self._filter(text) if self._stops else text

    def piece(self, token_id: int) -> bytes:
        return self._token_bytes[token_id]

    def finish(self) -> str:
        """What was held back, once it is sure that no more comes. Half a character is dropped."""
        held, self._held = self._held, ""
        return "" if self.is_stopped else held

    def _filter(self, text: str) -> str:
        text = self._held + text
        places = ((text.find(stop), index) for index, stop in enumerate(self._stops))
        found = min((item for item in places if item[0] >= 0), default=None)
        if found is not None:
            place, self.stopped_by = found
            return text[: place + len(self._stops[self.stopped_by]) * self._includes_stop]
        kept = self._possible_stop_length(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _possible_stop_length(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    if tokenizer.decoder is None:
        raise ModelLoadError("the tokenizer has no decoder")
    plain = json.loads(tokenizer.decoder.__getstate__())
    return {part["type"] for part in plain.get("decoders", [plain])}


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _byte_level_alphabet()


def _read_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # Not spelled in bytes: a word that was added to the vocabulary as it is.
        return token.encode()


def _read_sentence_piece(token: str) -> bytes:
    if match := _HEX_BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode()

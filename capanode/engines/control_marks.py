"""Keeps what clients write from spelling the tokens that steer a model.

A text of a client is data. Where it spells such a token, or might with what a template puts behind
it, a `BREAK` is set inside. The prompt is then encoded in pieces, so that no tokenizer sees the
token's text whole; a prompt without such a spelling is encoded in one piece, as its model knows it.
"""

import re

from tokenizers import Tokenizer

from protocol.chat_formats import CHAT_FORMATS

# Lone surrogates: UTF-8 cannot spell them, so no text of a client holds one, nor any template.
BREAK = "\ud800"
END_OF_FINAL_MESSAGE = "\ud801"
_SURROGATE = re.compile("[\ud800-\udfff]")


class ControlMarks:
    """The texts of one model's steering tokens."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        """Those are the special ones, those that its `template` writes, and the marks of chat
        formats. Added words that only save tokens, like runs of spaces, are none."""
        known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        found = {
            text
            for text, token in known.items()
            if len(text) > 1
            and not text.isspace()
            and (token.special or text in template or text.startswith("<|"))
        }
        for chat_format in CHAT_FORMATS.values():
            found |= chat_format.marks & set(known)
        ordered = sorted(found, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self._beginnings = {text[:end] for text in found for end in range(1, len(text))}
        self._longest = max(map(len, found), default=0)

    def as_data(self, text: str) -> str:
        """The text with a BREAK in every mark that it spells or begins at its end."""
        text = _SURROGATE.sub("\ufffd", text)
        parts: list[str] = []
        start, match = 0, self._pattern.search(text)
        while match is not None:
            cut = match.start() + 1
            parts += (text[start:cut], BREAK)
            start, match = cut, self._pattern.search(text, cut)
        parts.append(text[start:])
        broken = "".join(parts)
        # A template may trim the text, so that what comes after it touches its last word.
        word_end = len(broken.rstrip())
        if self._may_go_on(broken[:word_end]):
            return broken[:word_end] + BREAK + broken[word_end:]
        return broken

    def _may_go_on(self, text: str) -> bool:
        return any(text[-size:] in self._beginnings for size in range(1, self._longest))

    def as_data_deep(self, value: object) -> object:
        """The same for every text in a JSON value."""
        if isinstance(value, str):
            return self.as_data(value)
        if isinstance(value, list):
            return [self.as_data_deep(item) for item in value]
        if isinstance(value, dict):
            return {self.as_data(key): self.as_data_deep(item) for key, item in value.items()}
        return value

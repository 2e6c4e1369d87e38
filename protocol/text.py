"""Text of others where people read it: a log line, a terminal.

A name, an error or an answer may hold line breaks that forge a log line, escape sequences that
rewrite a terminal, or marks that reverse the reading order. Here they become visible escapes.
"""

import unicodedata

# A line of a log is for one event: longer text is cut, with the number of characters left out.
LOG_CHARS_MAX = 2_000
# What an answer may format itself with: lines, tabs, and the joiners of scripts and emoji.
ANSWER_MARKS = "\n\t\u200c\u200d"


def printable(text: str, *, keep: str = "", chars_max: int | None = None) -> str:
    """The text with every character escaped that is no letter, mark, sign or space, except those in
    `keep`; cut after `chars_max` characters."""
    left_out = 0
    if chars_max is not None and len(text) > chars_max:
        left_out = len(text) - chars_max
        text = text[:chars_max]
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() or char in keep else _escaped(char) for char in text
        )
    return f"{text}… ({left_out} more characters)" if left_out else text


def _escaped(char: str) -> str:
    """`\\n`, `\\x1b`, `\\u202e`; other widths of space stay what they are."""
    if unicodedata.category(char) == "Zs":
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")

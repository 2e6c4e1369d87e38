"""Words that travel, of which a later version may know more."""

import re
from enum import StrEnum
from typing import Self

_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")


class OpenVocabulary(StrEnum):
    """A choice that stays readable when a later version adds to it.

    `Kind("word")` is the member for a word that this version lists. For another well-formed word it
    is a value of the same class that equals the word and `is_known` denies. Such a value is not
    kept, so peers cannot make the vocabulary grow. Iteration gives the listed words only.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if type(value) is not str or _WORD.fullmatch(value) is None:
            return None
        word = str.__new__(cls, value)
        word._name_ = value
        word._value_ = value
        return word

    @property
    def is_known(self) -> bool:
        """This version lists the word."""
        return self.value in type(self)._value2member_map_

"""What an answer says, piece by piece, whichever dialect writes it down."""

from dataclasses import dataclass

from protocol.generation import TokenScores


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model wrote to itself before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The model calls a function. `index` counts the answer's calls."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments, as the model wrote them: JSON, unless it made a mistake."""

    index: int
    text: str


# Scores come after the text of their chunk.
AnswerEvent = TextDelta | ReasoningDelta | ToolCallStart | ToolCallArguments | TokenScores

"""How a stream of this API breaks; whole errors are as in OpenAI's other APIs."""

from dataclasses import replace

from coordinator.gateway.errors import Problem
from coordinator.gateway.http.event_text import named_event
from coordinator.gateway.http.openai.dialect import OpenAIDialect, error_object
from protocol.errors import Code

# They are about a conversation, whose field has another name here than in chats.
_ABOUT_INPUT = (Code.PROMPT_TOO_LONG.value, Code.INPUT_TOO_LARGE.value)


class ResponsesDialect(OpenAIDialect):
    def error_body(self, problem: Problem) -> bytes:
        return super().error_body(_renamed(problem))

    def error_event(self, problem: Problem) -> bytes:
        """Before `response.created`. OpenAI's clients raise what `error` says; others look at the
        type of the event."""
        error = error_object(_renamed(problem))
        event = error | {"type": "error", "sequence_number": 0, "error": error}
        return named_event("error", event)


def _renamed(problem: Problem) -> Problem:
    is_about_input = problem.param == "messages" and problem.code in _ABOUT_INPUT
    return replace(problem, param="input") if is_about_input else problem


RESPONSES = ResponsesDialect()

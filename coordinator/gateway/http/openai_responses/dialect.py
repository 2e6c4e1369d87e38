"""How a stream of this API breaks; whole errors are as in OpenAI's other APIs."""

from coordinator.gateway.errors import Problem
from coordinator.gateway.http.event_text import named_event
from coordinator.gateway.http.openai.dialect import OpenAIDialect, error_object


class ResponsesDialect(OpenAIDialect):
    def error_event(self, problem: Problem) -> bytes:
        """Before `response.created`. OpenAI's clients raise what `error` says; others look at the
        type of the event."""
        error = error_object(problem)
        event = error | {"type": "error", "sequence_number": 0, "error": error}
        return named_event("error", event)


RESPONSES = ResponsesDialect()

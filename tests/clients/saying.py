"""What the scripted model says next, cut where it hurts."""

from protocol.endings import Finish
from tests.coordinator.gateway.fake_market import Script
from tests.integration.openai_api import Served

TEXT = "Hello wörld 🙂"
WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PERSON = '{"name": "Ada", "age": 36}'


def say(served: Served, *tokens: str) -> None:
    served.market.script = Script(tokens=tokens, finish=Finish.STOP)


def say_text(served: Served) -> None:
    say(served, "Hello ", "wörld", " 🙂")


def call_tool(served: Served, call: str) -> None:
    """In the form that the scripted market says its model has."""
    say(served, "<tool", "_call>\n", call[:12], call[12:], "\n</tool_", "call>")

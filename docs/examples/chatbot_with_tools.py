"""A chatbot that may look things up: the model asks for a tool, we run it, the model answers.

    pip install openai
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-capa-…
    python docs/examples/chatbot_with_tools.py "What is the weather in Oslo?"

`tool_choice="required"` makes the first turn a call for certain, also with a model that is too
small to decide it well; leave it away with a larger one. The node enforces the arguments' schema.
"""

import json
import sys

from openai import OpenAI

MODEL = "smollm2-135m-instruct"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def weather(city: str) -> str:
    """Ask your own service here."""
    return f"It is sunny in {city}, 21 degrees."


def main(question: str) -> None:
    client = OpenAI()
    messages = [{"role": "user", "content": question}]
    limits = {"model": MODEL, "temperature": 0, "max_tokens": 100}
    asked = client.chat.completions.create(
        messages=messages, tools=[TOOL], tool_choice="required", **limits
    )
    turn = asked.choices[0].message
    messages.append(turn.model_dump(exclude_none=True))
    for call in turn.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = weather(**arguments)
        print(f"[weather {arguments}: {result}]")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    told = client.chat.completions.create(messages=messages, stream=True, **limits)
    for chunk in told:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is the weather in Oslo?")

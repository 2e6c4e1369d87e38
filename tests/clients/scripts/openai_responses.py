"""openai: a response whole, streamed and parsed, a function's call and its output, refusals."""

import json
import sys

import openai
from pydantic import BaseModel

url, key, model, what = sys.argv[1:5]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]


class Person(BaseModel):
    name: str
    age: int


def refusals():
    found = []
    for call in (
        lambda: client.responses.retrieve("resp_1"),
        lambda: client.responses.create(model=model, input="hi", previous_response_id="resp_1"),
        lambda: client.responses.create(model=model, input="hi", tools=[{"type": "web_search"}]),
    ):
        try:
            call()
        except openai.APIStatusError as error:
            found.append([error.status_code, error.param])
    return found


if what == "text":
    whole = client.responses.create(model=model, input="hi", instructions="Be brief.")
    with client.responses.stream(model=model, input="hi") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    found = {
        "texts": [whole.output_text, "".join(pieces), final.output_text],
        "status": [whole.status, final.status],
        "usage": whole.usage.total_tokens,
        "refusals": refusals(),
    }
elif what == "tools":
    with client.responses.stream(model=model, input="Weather?", tools=TOOLS) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    whole = client.responses.create(model=model, input="Weather?", tools=TOOLS)
    call = next(item for item in whole.output if item.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    asked = [{"role": "user", "content": "Weather?"}, *whole.output, output]
    again = client.responses.create(model=model, input=asked, tools=TOOLS)
    found = {
        "arguments": [json.loads(call.arguments), json.loads(final.output[-1].arguments)],
        "has_deltas": "response.function_call_arguments.delta" in events,
        "status": again.status,
    }
else:
    parsed = client.responses.parse(model=model, input="Ada is 36.", text_format=Person)
    found = parsed.output_parsed.model_dump()
print(json.dumps(found))

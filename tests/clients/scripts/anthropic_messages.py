"""anthropic: a message whole and streamed, a tool's call and its result, a count, refusals."""

import json
import sys

import anthropic

url, key, model, what = sys.argv[1:5]
client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
TOOLS = [
    {
        "name": "get_weather",
        "description": "Tells the weather.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


def ask(**more):
    messages = more.pop("messages", [{"role": "user", "content": "hi"}])
    return {"model": model, "max_tokens": 50, "messages": messages, **more}


def refusals():
    found = []
    cases = [
        (client, ask(model="no-such-model")),
        (client.with_options(api_key="sk-wrong"), ask()),
        (client, ask(max_tokens=0)),
    ]
    for asker, request in cases:
        try:
            asker.messages.create(**request)
        except anthropic.APIStatusError as error:
            found.append([type(error).__name__, error.status_code, error.body["error"]["type"]])
    return found


if what == "text":
    answered = client.messages.with_raw_response.create(**ask(system="Be brief."))
    whole = answered.parse()
    with client.messages.stream(**ask()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    raw = [event.type for event in client.messages.create(**ask(), stream=True)]
    found = {
        "texts": [whole.content[0].text, text, final.content[0].text],
        "stop": [whole.stop_reason, final.stop_reason],
        "usage": [whole.usage.input_tokens, final.usage.output_tokens],
        "has_request_id": answered.request_id.startswith("req_"),
        "ends": [raw[0], raw[-1]],
        "counts": client.messages.count_tokens(
            model=model, messages=ask()["messages"]
        ).input_tokens,
        "refusals": refusals(),
    }
else:
    with client.messages.stream(**ask(tools=TOOLS)) as stream:
        streamed = stream.get_final_message()
    whole = client.messages.create(**ask(tools=TOOLS))
    calls = [block for block in whole.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sunny"}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result]},
    ]
    again = client.messages.create(**ask(tools=TOOLS, messages=turns))
    found = {
        "inputs": [calls[0].input, streamed.content[-1].input],
        "stop": [whole.stop_reason, streamed.stop_reason, again.stop_reason],
    }
print(json.dumps(found))

"""LiteLLM's two ways to an OpenAI server: a chat, whole and streamed, and a tool call."""

import json
import sys

import litellm

url, key, model = sys.argv[1:4]
litellm.suppress_debug_info = True
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def ask(provider, **more):
    return litellm.completion(
        model=f"{provider}/{model}",
        api_base=f"{url}/v1",
        api_key=key,
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=16,
        **more,
    )


found = {}
for provider in ("openai", "hosted_vllm"):
    if sys.argv[4] == "text":
        whole = ask(provider).choices[0].message.content
        streamed = "".join(
            chunk.choices[0].delta.content or "" for chunk in ask(provider, stream=True)
        )
        found[provider] = [whole, streamed]
    else:
        answer = ask(provider, tools=TOOLS).choices[0]
        (call,) = answer.message.tool_calls
        found[provider] = [answer.finish_reason, call.function.name, call.function.arguments]
print(json.dumps(found))

"""Requests as people send them, by route: what the description of the API shows, and what its
readers are asked with. Together the examples of a route have each field that is an object or a
list of objects."""

from typing import Final

from coordinator.gateway.http.strict_json import Json

_MODEL = "smollm2-135m-instruct"
_PROVIDER: Json = {
    "sort": "latency",
    "only": [],
    "max_price": {"prompt": 0.5, "completion": "0.8"},
    "data_collection": "deny",
}
_RERANK: Json = {
    "model": "all-minilm-l6-v2",
    "query": "Which animals purr?",
    "documents": ["Cats purr when they are content.", "The train leaves at nine."],
    "top_n": 1,
}
_WEATHER: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
_FACTS: Json = {"type": "object", "properties": {"facts": {"type": "array", "maxItems": 3}}}
_FUNCTION: Json = {
    "name": "get_weather",
    "description": "Tells the weather of a city.",
    "parameters": _WEATHER,
}
_PERSON: Json = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}

REQUESTS: Final[dict[str, tuple[Json, ...]]] = {
    "/v1/chat/completions": (
        {
            "model": _MODEL,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]},
            ],
            "max_tokens": 64,
            "temperature": 0.7,
            "stop": ["\n\n"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "provider": _PROVIDER,
        },
        {
            "model": _MODEL,
            "messages": [
                {"role": "user", "content": "Is it raining in Paris?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "light rain, 12 °C"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "The weather of a city, now.",
                        "parameters": _WEATHER,
                    },
                }
            ],
            "tool_choice": "auto",
        },
        {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Three facts of Paris, as JSON."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "facts", "schema": _FACTS, "strict": True},
            },
            "logprobs": True,
            "top_logprobs": 2,
            "logit_bias": {"50256": -100},
            "n": 2,
            "seed": 7,
        },
    ),
    "/v1/completions": (
        {
            "model": _MODEL,
            "prompt": "Once upon a time",
            "max_tokens": 64,
            "stream": True,
            "stream_options": {"include_usage": True},
            "provider": _PROVIDER,
        },
        {"model": _MODEL, "prompt": [1, 2, 3]},
    ),
    "/v1/embeddings": (
        {
            "model": "all-minilm-l6-v2",
            "input": ["The cat sat on the mat.", "A kitten was resting on the rug."],
            "encoding_format": "float",
            "provider": _PROVIDER,
        },
        {"model": "all-minilm-l6-v2", "input": "One text."},
    ),
    "/v1/images/classifications": (
        {
            "model": "efficientnet-lite0",
            "image": "data:image/jpeg;base64,/9j/4AAQSkZJRg==",
            "top_k": 3,
            "provider": _PROVIDER,
        },
    ),
    "/v1/rerank": (_RERANK, _RERANK | {"documents": [{"text": "A cat."}, {"text": "A dog."}]}),
    "/v2/rerank": (_RERANK,),
    "/v1/tokenize": (
        {"model": _MODEL, "prompt": "The cat", "return_token_strs": True},
        {"model": _MODEL, "messages": [{"role": "user", "content": "The cat"}]},
    ),
    "/v1/detokenize": ({"model": _MODEL, "tokens": [47, 5]},),
    "/v1/responses": (
        {
            "model": _MODEL,
            "input": "Why is the sky blue?",
            "instructions": "You answer in one sentence.",
            "max_output_tokens": 64,
            "metadata": {"purpose": "example"},
            "stream": True,
            "provider": _PROVIDER,
        },
        {
            "model": _MODEL,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "And in Paris?"}]},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "get_weather",
                    "arguments": '{"city": "Paris"}',
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            ],
            "tools": [{"type": "function", **_FUNCTION}],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
        },
        {
            "model": _MODEL,
            "input": "Ada is 36.",
            "text": {"format": {"type": "json_schema", "name": "person", "schema": _PERSON}},
            "reasoning": {"effort": "low"},
        },
    ),
    "/v1/messages": (
        {
            "model": _MODEL,
            "max_tokens": 64,
            "system": "You answer in one sentence.",
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "stop_sequences": ["END"],
            "stream": True,
            "provider": _PROVIDER,
        },
        {
            "model": _MODEL,
            "max_tokens": 64,
            "system": [{"type": "text", "text": "You answer in one sentence."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "And in Paris?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {
                            "type": "tool_use",
                            "id": "toolu_1",
                            "name": "get_weather",
                            "input": {"city": "Paris"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
                    ],
                },
            ],
            "tools": [
                {
                    "name": "get_weather",
                    "description": "Tells the weather of a city.",
                    "input_schema": _WEATHER,
                }
            ],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "thinking": {"type": "disabled"},
            "output_config": {"effort": "low"},
        },
    ),
    "/v1/responses/input_tokens": (
        {
            "model": _MODEL,
            "instructions": "You answer in one sentence.",
            "input": "Why is the sky blue?",
        },
    ),
    "/v1/batches": (
        {
            "input_file_id": "file-01M85AHTB35FKDKRAZX80MZY81",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"purpose": "example"},
            "output_expires_after": {"anchor": "created_at", "seconds": 86_400},
        },
    ),
    "/v1/messages/count_tokens": (
        {
            "model": _MODEL,
            "system": "You answer in one sentence.",
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "provider": _PROVIDER,
        },
    ),
}

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
}

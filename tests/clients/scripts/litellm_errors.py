"""How LiteLLM reads a refusal for a prompt that is too long: by its words."""

import json
import sys

import litellm

url, key, model = sys.argv[1:4]
litellm.suppress_debug_info = True
try:
    litellm.completion(
        model=f"openai/{model}",
        api_base=f"{url}/v1",
        api_key=key,
        messages=[{"role": "user", "content": "word " * 50_000}],
        num_retries=0,
    )
except litellm.ContextWindowExceededError as error:
    print(json.dumps({"kind": type(error).__name__, "status": error.status_code}))

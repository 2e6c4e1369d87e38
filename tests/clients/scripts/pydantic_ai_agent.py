"""pydantic-ai: an agent that answers in text, and one whose answer is typed."""

import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, key, model, what = sys.argv[1:5]
chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key))


class Person(BaseModel):
    name: str
    age: int


if what == "text":
    found = Agent(chat).run_sync("Say hello.").output
else:
    found = Agent(chat, output_type=Person).run_sync("Ada is 36.").output.model_dump()
print(json.dumps(found))

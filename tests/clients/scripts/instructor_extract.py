"""instructor: a typed answer by JSON schema."""

import json
import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel

url, key, model = sys.argv[1:4]


class Person(BaseModel):
    name: str
    age: int


found = {}
for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key=key), mode=mode)
    wants_tools = mode is instructor.Mode.TOOLS
    if wants_tools != (sys.argv[4] == "tool"):
        continue
    person = client.chat.completions.create(
        model=model,
        response_model=Person,
        max_retries=1,
        messages=[{"role": "user", "content": "Ada is 36."}],
    )
    found = person.model_dump()
print(json.dumps(found))

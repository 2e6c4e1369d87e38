"""Structured extraction: from a text to a record that fits a schema, whatever the model is.

    pip install openai
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-capa-…
    echo "Order 4411: three lamps for Ada Lovelace" | python docs/examples/extract_fields.py

The node allows no token that would leave the schema, so the answer always parses; whether it is
right is the model's affair. Bound texts and lists, as here, or a small model may fill its limit.
"""

import json
import sys

from openai import OpenAI

MODEL = "smollm2-135m-instruct"
SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"type": "integer", "minimum": 0, "maximum": 999999},
        "item": {"type": "string", "maxLength": 30},
        "customer": {"type": "string", "maxLength": 40},
    },
    "required": ["order", "item", "customer"],
    "additionalProperties": False,
}


def extract(client: OpenAI, text: str) -> dict[str, object]:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Extract order, item and customer from the text."},
            {"role": "user", "content": text},
        ],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "order", "strict": True, "schema": SCHEMA},
        },
        temperature=0,
        max_tokens=100,
    )
    return dict(json.loads(answer.choices[0].message.content))


if __name__ == "__main__":
    print(json.dumps(extract(OpenAI(), sys.stdin.read())))

"""LangChain's ChatOpenAI with its defaults: a chat, a stream, a bound tool, embeddings."""

import json
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, key, model, what = sys.argv[1:5]
chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key, max_retries=0)


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "sunny"


if what == "text":
    streamed = "".join(chunk.content for chunk in chat.stream("Say hello."))
    found = [chat.invoke("Say hello.").content, streamed]
elif what == "tool":
    found = [
        {"name": call["name"], "args": call["args"]}
        for call in chat.bind_tools([get_weather]).invoke("What is the weather?").tool_calls
    ]
else:
    texts = OpenAIEmbeddings(
        model=sys.argv[5], base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False
    )
    found = len(texts.embed_query("hello"))
print(json.dumps(found))

"""LlamaIndex's OpenAILike: a completion, a chat and a stream."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, key, model = sys.argv[1:4]
llm = OpenAILike(model=model, api_base=f"{url}/v1", api_key=key, is_chat_model=True, max_retries=0)
messages = [ChatMessage(role="user", content="Say hello.")]
streamed = "".join(piece.delta or "" for piece in llm.stream_chat(messages))
print(json.dumps([llm.complete("Say hello.").text, llm.chat(messages).message.content, streamed]))

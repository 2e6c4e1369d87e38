"""Translation of a file, line by line, several lines at once and in their order.

    pip install openai
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-capa-…
    python docs/examples/translate.py French < text.txt

Every line is a job of its own: the market spreads them over its nodes. Of `provider`, `sort` says
what matters, and `data_collection: deny` that only nodes may see the text that promise to keep
nothing of it. A longer text is cheaper as a batch: see `coordinator batch run`.
"""

import asyncio
import sys

from openai import AsyncOpenAI

MODEL = "smollm2-135m-instruct"
AT_ONCE = 8


async def translate(client: AsyncOpenAI, places: asyncio.Semaphore, to: str, line: str) -> str:
    async with places:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": f"Translate what the user says into {to}."},
                {"role": "user", "content": line},
            ],
            temperature=0,
            max_tokens=2 * len(line.split()) + 20,
            extra_body={"provider": {"sort": "price", "data_collection": "deny"}},
        )
    return (answer.choices[0].message.content or "").strip().replace("\n", " ")


async def main(to: str) -> None:
    lines = [line.strip() for line in sys.stdin if line.strip()]
    places = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI() as client:
        for done in await asyncio.gather(*(translate(client, places, to, one) for one in lines)):
            print(done)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "French"))

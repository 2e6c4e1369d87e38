"""Recommendation: embed a catalogue once, find the nearest to what a user liked, rerank the best.

    pip install openai httpx
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-capa-…
    python docs/examples/recommend.py "A quiet book about the sea"

The first stage compares vectors that you keep, which costs nothing per question but its own
embedding. The second asks `/v1/rerank` to order the few that are left.
"""

import os
import sys

import httpx
from openai import OpenAI

MODEL = "all-minilm-l6-v2"
CATALOGUE = [
    "A whaler hunts a white whale across the oceans.",
    "An old fisherman fights a great fish far out at sea.",
    "A detective solves a murder on a snowbound train.",
    "A boy learns magic at a school in a castle.",
    "How central banks set interest rates.",
    "A cook travels through Italy and writes down recipes.",
]
NEAREST = 3


def embed(client: OpenAI, texts: list[str]) -> list[list[float]]:
    return [one.embedding for one in client.embeddings.create(model=MODEL, input=texts).data]


def nearest(question: list[float], catalogue: list[list[float]]) -> list[int]:
    """By the cosine: the vectors have length one."""
    scores = [sum(a * b for a, b in zip(question, one, strict=True)) for one in catalogue]
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:NEAREST]


def main(question: str) -> None:
    client = OpenAI()
    vectors = embed(client, CATALOGUE)
    (asked,) = embed(client, [question])
    documents = [CATALOGUE[i] for i in nearest(asked, vectors)]
    answer = httpx.post(
        os.environ["OPENAI_BASE_URL"].rstrip("/") + "/rerank",
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
        json={"model": MODEL, "query": question, "documents": documents},
        timeout=60,
    )
    for result in answer.raise_for_status().json()["results"]:
        print(f"{result['relevance_score']:+.3f}  {documents[result['index']]}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "A quiet book about the sea")

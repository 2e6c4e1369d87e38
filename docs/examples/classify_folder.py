"""Image classification of a folder: what is on each photograph, as CSV.

    pip install httpx
    export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=sk-capa-…
    python docs/examples/classify_folder.py photos/ > labels.csv

An image that cannot be read is a row with its error, and the others go on.
"""

import csv
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

MODEL = "efficientnet-lite0"
KINDS = {".jpg", ".jpeg", ".png", ".webp"}
AT_ONCE = 4


def classify(client: httpx.Client, path: Path) -> tuple[str, str, float, str]:
    """Its name, its likeliest label, how likely that is, and what went wrong."""
    answer = client.post(
        "images/classifications", data={"model": MODEL}, files={"image": path.read_bytes()}
    )
    if answer.is_error:
        return path.name, "", 0.0, answer.json()["error"]["message"]
    best = answer.json()["data"][0]
    return path.name, best["label"], best["score"], ""


def classify_all(folder: Path) -> Iterator[tuple[str, str, float, str]]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    url = os.environ["OPENAI_BASE_URL"].rstrip("/") + "/"
    with (
        httpx.Client(base_url=url, headers=headers, timeout=120) as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        yield from pool.map(lambda path: classify(client, path), paths)


if __name__ == "__main__":
    rows = csv.writer(sys.stdout)
    rows.writerow(("file", "label", "probability", "error"))
    for name, label, score, error in classify_all(Path(sys.argv[1])):
        rows.writerow((name, label, f"{score:.3f}", error))

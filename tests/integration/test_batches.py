"""Batches on a whole market: by the stock client, and from the command line."""

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from sim.demo import EMBEDDING_MODEL
from tests.integration.conftest import RunningMarket

pytestmark = [pytest.mark.models, pytest.mark.slow]

ENDED = ("completed", "failed", "expired", "cancelled")
WITHIN_S = 90.0


def lines_of(count: int, url: str, body: dict[str, Any]) -> bytes:
    requests = [
        {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}
        for number in range(count)
    ]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def test_the_stock_client_runs_a_batch(market: RunningMarket) -> None:
    body = {"model": EMBEDDING_MODEL, "input": "one text of many"}
    content = lines_of(120, "/v1/embeddings", body) + lines_of(1, "/v1/embeddings", {}).replace(
        b"line-0", b"bad"
    )
    with openai.OpenAI(base_url=f"{market.http}/v1", api_key=market.api_key) as client:
        single = client.embeddings.create(model=EMBEDDING_MODEL, input="one text of many")
        stored = client.files.create(file=("lines.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=stored.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={"of": "a test"},
        )
        until = time.monotonic() + WITHIN_S
        while batch.status not in ENDED:
            assert time.monotonic() < until, batch
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (120, 1)
        assert batch.id in [item.id for item in client.batches.list(limit=5)]
        assert batch.output_file_id is not None
        answers = client.files.content(batch.output_file_id).text.splitlines()
        assert batch.error_file_id is not None
        (failed,) = client.files.content(batch.error_file_id).text.splitlines()
        client.files.delete(stored.id)
    tokens = single.usage.prompt_tokens
    for line in map(json.loads, answers):
        found = line["response"]["body"]
        assert found["data"][0]["embedding"] == pytest.approx(single.data[0].embedding, abs=1e-5)
        # As the node's tokenizer counts each text, in a job of many.
        assert found["usage"]["prompt_tokens"] == tokens
    assert len({json.loads(line)["custom_id"] for line in answers}) == 120
    assert json.loads(failed)["custom_id"] == "bad"
    assert batch.usage is not None
    assert batch.usage.input_tokens == 120 * tokens


def test_a_table_is_answered_from_the_command_line_and_gone_on_with(
    market: RunningMarket, tmp_path: Path
) -> None:
    key = f"--key={tmp_path / 'own.key'}"
    peer_id = market.command("whoami", key).strip()
    market.command("accounts", "create", "batcher", f"--peer-id={peer_id}", "--credit=1")
    table, output = tmp_path / "table.csv", tmp_path / "vectors.jsonl"
    table.write_text("text\n" + "".join(f"row {number}\n" for number in range(30)))
    arguments = ["batch", "run", str(table), "--column=text", f"--model={EMBEDDING_MODEL}", key]
    arguments += [f"--output={output}", "--json"]
    told = json.loads(market.command(*arguments))
    assert (told["total"], told["completed"], told["failed"]) == (30, 30, 0)
    whole = output.read_text().splitlines()
    output.write_text("\n".join(whole[:10]) + "\n" + whole[10][:20])
    assert market.try_command(*arguments).returncode == 1
    market.command(*arguments, "--resume")
    again = output.read_text().splitlines()
    assert again[:10] == whole[:10]
    assert {json.loads(line)["id"] for line in again} == {str(n) for n in range(1, 31)}
    assert len(again) == 30

"""A batch whose market is killed midway: no line is lost, and none is paid twice."""

import json

import httpx
import pytest

from tests.integration.frail_market import CHAT, FrailMarket
from tests.integration.test_batches import ENDED, WITHIN_S, lines_of

pytestmark = [pytest.mark.models, pytest.mark.slow]

TOKENS = 48


def test_a_market_killed_midway_loses_no_line_and_pays_none_twice(frail: FrailMarket) -> None:
    body = {
        "model": CHAT,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    with frail.client() as http:
        files = {"file": ("lines.jsonl", lines_of(24, "/v1/chat/completions", body))}
        stored = http.post("/v1/files", data={"purpose": "batch"}, files=files).json()
        ask = {
            "input_file_id": stored["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch_id = http.post("/v1/batches", json=ask).json()["id"]
        frail.wait(lambda: counts(http, batch_id)["completed"] >= 2)
        assert counts(http, batch_id)["completed"] < 24
    frail.call(frail.network.coordinator.kill)
    frail.kill(frail.nodes[0])
    frail.call(frail.network.start_coordinator)
    frail.restart(frail.nodes[0])
    with frail.client() as http:
        frail.wait(lambda: status(http, batch_id) in ENDED, within_s=WITHIN_S)
        batch = http.get(f"/v1/batches/{batch_id}").json()
        assert batch["status"] == "completed", batch
        assert batch["request_counts"] == {"total": 24, "completed": 24, "failed": 0}
        content = http.get(f"/v1/files/{batch['output_file_id']}/content").text
    answers = [json.loads(line) for line in content.splitlines()]
    assert sorted(line["custom_id"] for line in answers) == sorted(f"line-{n}" for n in range(24))
    costs = {
        line["response"]["request_id"].removeprefix("req_"): line["response"]["body"]["usage"]
        for line in answers
    }
    assert len(costs) == 24
    paid = frail.rows(
        "SELECT job_id, COUNT(*), MIN(node), SUM(amount_nano), SUM(output_tokens) FROM receipts "
        "WHERE state <> 'pending' GROUP BY job_id"
    )
    # All lines are alike, so a whole answer has one price at each node.
    whole_nano = {
        node: costs[job_id]["cost_nano"]
        for job_id, parts, node, _, _ in paid
        if job_id in costs and parts == 1
    }
    first_ms = frail.rows("SELECT MIN(created_at_ms) FROM batches WHERE id = ?", batch_id[6:])
    jobs = {
        row[0]
        for row in frail.rows("SELECT job_id FROM jobs WHERE created_at_ms >= ?", *first_ms[0])
    }
    for job_id, _, node, amount_nano, output_tokens in paid:
        if job_id in costs:
            assert amount_nano <= costs[job_id]["cost_nano"]
        elif job_id in jobs:
            # Cut by the crash: paid for what was signed for until then, and run again.
            assert output_tokens < TOKENS or amount_nano < whole_nano[node]
    frail.wait_healthy()
    frail.assert_sound()


def counts(http: httpx.Client, batch_id: str) -> dict[str, int]:
    found: dict[str, int] = http.get(f"/v1/batches/{batch_id}").json()["request_counts"]
    return found


def status(http: httpx.Client, batch_id: str) -> str:
    return str(http.get(f"/v1/batches/{batch_id}").json()["status"])

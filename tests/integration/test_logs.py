"""One search for a job's id shows its way through every process."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningMarket

pytestmark = [pytest.mark.models, pytest.mark.slow]

# It begins as a JPEG does, and then it does not go on as one.
NO_PICTURE = b"\xff\xd8\xff\xe0" + bytes(400)


SETTLED_WITHIN_S = 20.0


def lines_about(market: RunningMarket, word: str) -> dict[str, list[dict[str, Any]]]:
    """Log lines that hold the word, by the process that logged them."""
    logs = Path(market.data_dir).parent / "logs"
    found: dict[str, list[dict[str, Any]]] = {}
    for path in logs.glob("*.log"):
        lines = [line for line in path.read_text().splitlines() if word in line]
        if lines:
            found[path.stem] = [json.loads(line) for line in lines]
    return found


def test_one_search_shows_a_jobs_whole_path(market: RunningMarket) -> None:
    body = {"model": "smollm2-135m-instruct", "prompt": "One, two,", "max_tokens": 3}
    with market.client() as http:
        answer = http.post("/v1/completions", json=body).raise_for_status()
    job_id, request_id = answer.headers["x-capacloud-job-id"], answer.headers["x-request-id"]
    # The answer does not wait for its receipt.
    found = lines_about(market, job_id)
    until = time.monotonic() + SETTLED_WITHIN_S
    while "receipt_settled" not in str(found["coordinator"]) and time.monotonic() < until:
        time.sleep(0.1)
        found = lines_about(market, job_id)
    (node,) = set(found) - {"coordinator"}
    told = {line["event"]: line for line in found["coordinator"]}
    assert told["request_opened_job"]["request_id"] == request_id
    assert {"lease_granted", "request_opened_job", "receipt_settled"} <= set(told)
    assert "job_ended" in {line["event"] for line in found[node]}


def test_a_worker_names_the_job_whose_input_it_refuses(market: RunningMarket) -> None:
    body = {"model": "efficientnet-lite0", "image": base64.b64encode(NO_PICTURE).decode()}
    with market.client() as http:
        refused = http.post("/v1/images/classifications", json=body)
    assert refused.status_code == 400
    job_id = refused.headers["x-capacloud-job-id"]
    found = lines_about(market, job_id)
    told = {line["event"]: line for lines in found.values() for line in lines}
    assert told["request_failed"]["request_id"] == refused.headers["x-request-id"]
    assert told["job_input_refused"]["code"] == "invalid_image"
    assert "job_ended" in told

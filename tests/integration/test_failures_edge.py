"""A gateway beside its users, whose coordinator is killed and comes back."""

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.integration.frail_market import FrailMarket, chat_body
from tests.integration.test_edge_gateway import gateway

pytestmark = [pytest.mark.models, pytest.mark.slow]


def test_streams_go_on_without_the_coordinator_and_new_jobs_wait_for_it(
    frail: FrailMarket, tmp_path: Path
) -> None:
    key = ["coordinator", "whoami", f"--key={tmp_path / 'client.key'}", f"--data-dir={tmp_path}"]
    made = subprocess.run([sys.executable, "-m", *key], capture_output=True, text=True, check=True)
    peer_id = made.stdout.strip()
    frail.market.command("accounts", "create", "edge", f"--peer-id={peer_id}", "--credit=1")
    flags = (f"--coordinator={frail.market.coordinator}", "--dial-private=loopback", "--no-keys")
    with (
        gateway(tmp_path, *flags) as ready,
        httpx.Client(base_url=ready["http"], timeout=60, trust_env=False) as http,
    ):
        body = chat_body(max_tokens=300, stream=True)
        with http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            lines = streamed.iter_lines()
            assert next(lines).startswith("data: ")
            frail.call(frail.network.coordinator.kill)
            waiting: list[httpx.Response] = []
            next_job = threading.Thread(
                target=lambda: waiting.append(http.post("/v1/chat/completions", json=chat_body()))
            )
            next_job.start()
            frail.call(frail.network.start_coordinator)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        assert not any('"error"' in line for line in rest)
        next_job.join(60)
        (answer,) = waiting
        assert answer.status_code == 200 or (
            answer.status_code == 503 and answer.headers["retry-after"]
        ), answer.text
        frail.wait_healthy()
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
    # What the gateway signed for while the coordinator was away is settled.
    query = "SELECT count(*) FROM leases WHERE state = 'open' AND client = ?"
    frail.wait(lambda: frail.rows(query, peer_id) == [(0,)])
    frail.assert_sound()

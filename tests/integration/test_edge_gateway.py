"""`coordinator gateway` as a process beside its users, in front of a real market."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from sim.demo import EMBEDDING_MODEL
from tests.integration.conftest import RunningMarket
from tests.integration.test_market import CHAT, IMAGE, grace_hopper

pytestmark = [pytest.mark.models, pytest.mark.slow]

WITHIN_S = 30


class Relay:
    """A TCP relay in front of a port of this machine, which counts what goes to it."""

    def __init__(self, port: int) -> None:
        self.upstream_bytes = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._carry, args=(source, sink, sink is far), daemon=True
                    ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError), closing(sink):
            while data := source.recv(65_536):
                self.upstream_bytes += len(data) if counts else 0
                sink.sendall(data)


@contextmanager
def gateway(folder: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """Its ready line; stopped by Ctrl-C, in good order."""
    command = [sys.executable, "-m", "coordinator", "gateway", "--json", "--http=127.0.0.1:0"]
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--data-dir={folder}", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (folder / "gateway.log").read_text()
        yield json.loads(line)
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 0, (folder / "gateway.log").read_text()
        assert process.stdout.read() == ""
        assert "Traceback" not in (folder / "gateway.log").read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run_batch(http: httpx.Client, *, count: int) -> None:
    """Its file stays beside its users."""
    body = {"model": EMBEDDING_MODEL, "input": "one text of many"}
    requests = [
        {"custom_id": f"e{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
        for number in range(count)
    ]
    content = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    stored = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in", content)})
    ask = {
        "input_file_id": stored.json()["id"],
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    batch = http.post("/v1/batches", json=ask).json()
    until = time.monotonic() + WITHIN_S
    while batch["status"] not in ("completed", "failed"):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = http.get(f"/v1/batches/{batch['id']}").json()
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    answers = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    assert len(answers) == count


def test_the_api_beside_its_users(market: RunningMarket, tmp_path: Path) -> None:
    """Its account pays, and what it sends to the coordinator does not grow with the prompt."""
    whoami = subprocess.run(
        [
            *(sys.executable, "-m", "coordinator", "whoami"),
            *(f"--key={tmp_path / 'client.key'}", f"--data-dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    peer_id = whoami.stdout.strip()
    market.command("accounts", "create", "edge", f"--peer-id={peer_id}", "--credit=1")
    port = int(market.coordinator.split("/")[4])
    relay = Relay(port)
    address = market.coordinator.replace(f"/tcp/{port}/", f"/tcp/{relay.port}/")
    flags = (f"--coordinator={address}", "--dial-private=loopback", "--no-keys")
    with closing(relay), gateway(tmp_path, *flags) as ready:
        assert ready["peer_id"] == peer_id
        assert ready["needs_key"] is False
        with httpx.Client(base_url=ready["http"], timeout=60, trust_env=False) as http:
            assert http.get("/health").status_code == 200
            listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
            assert CHAT in listed
            body = {"model": CHAT, "messages": [{"role": "user", "content": "Say hello."}]}
            answer = http.post("/v1/chat/completions", json=body | {"max_tokens": 8})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] > 0
            streamed = body | {"max_tokens": 8, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=streamed) as reply:
                assert "data: [DONE]" in list(reply.iter_lines())
            # Jobs that come one after another find a lease that was taken ahead of them.
            for _ in range(10):
                again = http.post("/v1/chat/completions", json=body | {"max_tokens": 1})
                assert again.status_code == 200, again.text
                assert again.headers["x-generation-id"] in again.json()["id"]
            hits = 'capacloud_leases_ahead{figure="hits"} '
            assert int(float(http.get("/metrics").text.partition(hits)[2].split()[0])) > 0
            before = relay.upstream_bytes
            files = {"image": ("grace.jpg", grace_hopper(), "image/jpeg")}
            answer = http.post("/v1/images/classifications", data={"model": IMAGE}, files=files)
            assert answer.json()["data"][0]["label"] == "military uniform"
            run_batch(http, count=20)
    # Leases, words on them and lists of nodes, and not the photograph.
    assert 0 < relay.upstream_bytes - before < len(grace_hopper()) / 2
    account = json.loads(market.command("accounts", "show", "edge", "--json"))
    assert account["available_nano"] < 10**9
    assert account["held_nano"] == 0


def test_without_keys_it_is_not_opened_to_others(market: RunningMarket, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coordinator", "gateway", f"--data-dir={tmp_path}"]
    flags = [f"--coordinator={market.coordinator}", "--no-keys", "--http=0.0.0.0:0"]
    done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, check=False, timeout=WITHIN_S
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "could spend this account's money" in done.stderr

"""A model pulled over real sockets, from a hub that answers on loopback."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from capanode.models.catalog import Catalog
from capanode.models.hub_connection import HubOptions
from capanode.models.library import PullOptions, pull
from capanode.models.store import ModelStore
from tests.capanode.model_makers import FakeHub, layout_files


def handler_for(hub: FakeHub) -> type[http.server.BaseHTTPRequestHandler]:
    """Speaks HTTP for `hub`; a reply that the hub cuts off ends the connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = f"http://{self.headers['host']}{self.path}"
            reply = hub(httpx.Request("GET", url, headers=dict(self.headers)))
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if "content-length" not in reply.headers:
                self.send_header("content-length", "0")
            self.end_headers()
            try:
                assert isinstance(reply.stream, httpx.SyncByteStream)
                for chunk in reply.stream:
                    self.wfile.write(chunk)
            except httpx.ReadError:
                self.close_connection = True

        def log_message(self, *arguments: object, **settings: object) -> None:
            """Tests stay silent."""

    return Handler


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(layout_files())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(hub)) as server:
        # The same server under another name is another host to the client.
        hub.cdn = httpx.URL(f"http://localhost:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def test_a_model_is_pulled_over_http_through_redirects_and_broken_lines(
    hub: FakeHub, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "store")
    endpoint = f"http://127.0.0.1:{hub.cdn.port}"
    options = PullOptions(hub=HubOptions(endpoint=endpoint, token="secret", stall_timeout_s=10.0))
    hub.cuts = [10, 10]
    model = pull(store, Catalog(()), "hf:owner/tiny@main", options=options)
    store.verify(model.digest)
    assert model.manifest.source == f"hf:owner/tiny@{hub.commit}"
    assert {request.headers.get("range") for request in hub.requests} >= {"bytes=10-"}
    tokens = {request.url.host: request.headers.get("authorization") for request in hub.requests}
    assert tokens == {"127.0.0.1": "Bearer secret", "localhost": None}


# Pulls as an operator starts them


def start_pull(hub: FakeHub, data_dir: Path, *more: str) -> "subprocess.Popen[str]":
    env = {
        "PATH": os.environ["PATH"],
        "CAPANODE_HUB_URL": f"http://127.0.0.1:{hub.cdn.port}",
        "HF_TOKEN": "hf_secret",
    }
    command = [sys.executable, "-m", "capanode", "models", "pull", "hf:owner/tiny", *more]
    return subprocess.Popen(
        [*command, "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_half_a_model_never_counts_as_whole(
    hub: FakeHub, tmp_path: Path, how: signal.Signals
) -> None:
    half, go_on = threading.Event(), threading.Event()

    def wait_at_half() -> None:
        if hub.requests[-1].url.path.endswith("model.safetensors"):
            half.set()
            go_on.wait(30)

    hub.on_chunk = wait_at_half
    with start_pull(hub, tmp_path) as pull_process:
        assert half.wait(60)
        pull_process.send_signal(how)
        _, err = pull_process.communicate(timeout=30)
    go_on.set()
    store = ModelStore(tmp_path / "models")
    assert store.digests() == []
    assert store.names() == {}
    assert "hf_secret" not in err
    if how is signal.SIGINT:
        assert pull_process.returncode == 130
        assert "pull hf:owner/tiny` goes on with it" in err
    with start_pull(hub, tmp_path, "--json") as pull_process:
        out, err = pull_process.communicate(timeout=60)
    digest = json.loads(out)["digest"]
    store.verify(digest)
    steps = [json.loads(line)["progress"] for line in err.splitlines()]
    assert steps[-1]["done"] == steps[-1]["total"]
    assert "hf_secret" not in out + err
    tokens = {request.headers.get("authorization") for request in hub.requests}
    assert tokens == {"Bearer hf_secret", None}

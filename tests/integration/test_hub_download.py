"""A model pulled over real sockets, from a hub that answers on loopback."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from capanode.models.catalog import Catalog
from capanode.models.library import PullOptions, pull
from capanode.models.sources_hub import HubOptions
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

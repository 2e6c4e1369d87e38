"""Files and batches over HTTP, with the service that runs them and a fake market."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.batches.lines import ENDPOINTS
from coordinator.gateway.caller import Caller
from protocol.programs.runners import InlineRunner
from tests.coordinator.batches.service_maker import (
    chat_lines,
    embedding_lines,
    jsonl,
    office,
    request_line,
)
from tests.coordinator.gateway.fake_market import API_KEY, OTHER_KEY, FakeMarket
from tests.coordinator.gateway.harness import Harness, harness

WITHIN_S = 10.0


class KeyedMarket(FakeMarket):
    """Knows the keys that the books know, too."""

    def __init__(self, callers: dict[str, Caller]) -> None:
        super().__init__()
        self.callers = callers

    async def authenticate(self, secret: str) -> Caller | None:
        return self.callers.get(secret)


@contextmanager
def batch_gateway(folder: Path) -> Iterator[Harness]:
    with office(folder / "files") as rooms:
        market = KeyedMarket({API_KEY: rooms.caller, OTHER_KEY: rooms.other})
        with harness(
            market=market,
            make_filing=lambda market, clock: rooms.service(market, InlineRunner(), clock),
        ) as found:
            yield found


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Harness]:
    with batch_gateway(tmp_path) as found:
        yield found


def upload(gateway: Harness, data: bytes, **fields: str) -> httpx.Response:
    return gateway.post(
        "/v1/files", data={"purpose": "batch"} | fields, files={"file": ("in.jsonl", data)}
    )


def created(gateway: Harness, lines: list[Any], endpoint: str, **fields: Any) -> dict[str, Any]:
    body = {
        "input_file_id": upload(gateway, jsonl(lines)).json()["id"],
        "endpoint": endpoint,
        "completion_window": "24h",
    }
    answer = gateway.post("/v1/batches", body | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(gateway: Harness, batch_id: str) -> dict[str, Any]:
    until = time.monotonic() + WITHIN_S
    while True:
        batch: dict[str, Any] = gateway.get(f"/v1/batches/{batch_id}").json()
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch
        assert time.monotonic() < until, batch


def test_a_file_is_kept_found_read_in_part_and_deleted(gateway: Harness) -> None:
    data = bytes(range(256)) * 1_000
    answer = upload(gateway, data)
    assert answer.status_code == 200
    info = answer.json()
    assert info == {
        "id": info["id"],
        "object": "file",
        "bytes": len(data),
        "created_at": 1_800_000_000,
        "expires_at": 1_800_000_000 + 30 * 86_400,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    path = f"/v1/files/{info['id']}"
    assert gateway.get(path).json() == info
    assert gateway.get(f"{path}/content").content == data
    part = gateway.get(f"{path}/content", headers={"range": "bytes=65530-65550"})
    assert (part.status_code, part.content) == (206, data[65_530:65_551])
    assert part.headers["content-range"] == f"bytes 65530-65550/{len(data)}"
    beyond = gateway.get(f"{path}/content", headers={"range": "bytes=900000-"})
    assert beyond.status_code == 416
    assert gateway.request("DELETE", path).json() == {
        "id": info["id"],
        "object": "file",
        "deleted": True,
    }
    assert gateway.get(path).status_code == 404


def test_files_are_listed_page_by_page(gateway: Harness) -> None:
    ids = [upload(gateway, b"x").json()["id"] for _ in range(5)]
    first = gateway.get("/v1/files", params={"limit": 2, "order": "asc"}).json()
    assert [item["id"] for item in first["data"]] == ids[:2]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[1], True)
    rest = gateway.get("/v1/files", params={"after": first["last_id"], "order": "asc"}).json()
    assert [item["id"] for item in rest["data"]] == ids[2:]
    assert not rest["has_more"]
    assert gateway.get("/v1/files", params={"purpose": "batch_output"}).json()["data"] == []
    others = gateway.get("/v1/files", headers={"authorization": f"Bearer {OTHER_KEY}"})
    assert others.json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        ({"expires_after[seconds]": "60"}, "expires_after.seconds"),
    ],
)
def test_a_form_that_asks_for_what_there_is_not_is_refused(
    gateway: Harness, fields: dict[str, str], param: str
) -> None:
    answer = upload(gateway, b"x", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert gateway.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b\r\n",
        b"--b\r\ncontent-disposition: form-data; name=file; filename=f\r\n\r\ndata",
        b"--b junk\r\n\r\n",
        b"--b\r\n" + b"x" * 6_000,
    ],
)
def test_a_broken_form_is_refused_and_leaves_nothing(gateway: Harness, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = gateway.request("POST", "/v1/files", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")
    assert gateway.get("/v1/files").json()["data"] == []


def test_a_batch_runs_to_its_files(gateway: Harness) -> None:
    lines = [*chat_lines(2), chat_lines(3)[2] | {"body": {"model": "tiny-chat"}}]
    batch = created(gateway, lines, "/v1/chat/completions", metadata={"night": "run"})
    assert batch["object"] == "batch"
    assert batch["status"] in ("validating", "in_progress", "completed")
    done = ended(gateway, batch["id"])
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert done["metadata"] == {"night": "run"}
    assert done["completion_window"] == "24h"
    assert done["expires_at"] == done["created_at"] + 86_400
    assert None not in (done["in_progress_at"], done["finalizing_at"], done["completed_at"])
    assert done["usage"]["total_tokens"] == 2 * (7 + 5)
    output = gateway.get(f"/v1/files/{done['output_file_id']}/content").text.splitlines()
    answers = {line["custom_id"]: line for line in map(json.loads, output)}
    assert answers.keys() == {"c0", "c1"}
    assert answers["c0"]["error"] is None
    assert answers["c0"]["response"]["status_code"] == 200
    assert answers["c0"]["response"]["body"]["object"] == "chat.completion"
    errors = gateway.get(f"/v1/files/{done['error_file_id']}/content").json()
    assert (errors["custom_id"], errors["response"]["status_code"]) == ("c2", 400)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat_lines(1)[0]["body"],
    "/v1/completions": {"model": "tiny-chat", "prompt": "once"},
    "/v1/embeddings": {"model": "tiny-embedder", "input": "text"},
    "/v1/images/classifications": {"model": "tiny/classifier", "image": "/9j/4A=="},
    "/v1/messages": {
        "model": "tiny-chat",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "hi"}],
    },
    "/v1/rerank": {"model": "tiny-embedder", "query": "q", "documents": ["a", "b"]},
    "/v1/responses": {"model": "tiny-chat", "input": "hi"},
}


def test_every_endpoint_of_a_batch_is_tried() -> None:
    assert BODIES.keys() == ENDPOINTS.keys()


@pytest.mark.parametrize("endpoint", BODIES)
def test_a_line_is_answered_as_its_request_would_be(gateway: Harness, endpoint: str) -> None:
    single = gateway.post(endpoint, BODIES[endpoint])
    assert single.status_code == 200, single.text
    bad = request_line("bad", endpoint, {"model": "tiny-chat"})
    refused = gateway.post(endpoint, bad["body"])
    lines = [request_line("good", endpoint, BODIES[endpoint]), bad]
    done = ended(gateway, created(gateway, lines, endpoint)["id"])
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    answer = gateway.get(f"/v1/files/{done['output_file_id']}/content").json()
    assert answer["response"]["body"].keys() == single.json().keys()
    error = gateway.get(f"/v1/files/{done['error_file_id']}/content").json()
    assert error["response"]["status_code"] == refused.status_code
    assert error["response"]["body"] == refused.json()


def test_vectors_of_a_batch_are_those_of_single_requests(gateway: Harness) -> None:
    lines = embedding_lines(3, texts=2)
    single = gateway.post("/v1/embeddings", lines[0]["body"]).json()
    done = ended(gateway, created(gateway, lines, "/v1/embeddings")["id"])
    output = gateway.get(f"/v1/files/{done['output_file_id']}/content").text.splitlines()
    body = json.loads(output[0])["response"]["body"]
    assert body["data"] == single["data"]
    assert body["model"] == single["model"]


def test_batches_are_listed_newest_first_and_a_cancel_after_the_end_changes_nothing(
    gateway: Harness,
) -> None:
    ids = [created(gateway, chat_lines(1), "/v1/chat/completions")["id"] for _ in range(3)]
    done = ended(gateway, ids[0])
    listed = gateway.get("/v1/batches", params={"limit": 2}).json()
    assert [item["id"] for item in listed["data"]] == [ids[2], ids[1]]
    assert listed["has_more"]
    after = gateway.get("/v1/batches", params={"after": ids[1]}).json()
    assert [item["id"] for item in after["data"]] == [ids[0]]
    assert gateway.post(f"/v1/batches/{ids[0]}/cancel").json() == done


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"endpoint": "/v1/nothing"}, 400, "endpoint"),
        ({"input_file_id": "file-unknown"}, 404, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, 400, "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 5}},
            400,
            "output_expires_after.seconds",
        ),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    gateway: Harness, fields: dict[str, Any], status: int, param: str
) -> None:
    file_id = upload(gateway, jsonl(chat_lines(1))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    answer = gateway.post("/v1/batches", body | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_what_is_not_there_is_404_and_uploads_in_parts_say_what_to_do(gateway: Harness) -> None:
    for path in ("/v1/files/x", "/v1/batches/batch_x", "/v1/files/file-x/content"):
        assert gateway.get(path).status_code == 404
    refused = gateway.post("/v1/uploads", {"filename": "f", "bytes": 1, "purpose": "batch"})
    assert refused.status_code == 400
    assert "POST /v1/files" in refused.json()["error"]["message"]


def test_a_gateway_without_files_says_so() -> None:
    with harness() as bare:
        answer = bare.get("/v1/files")
    assert answer.status_code == 404
    assert "keeps no files" in answer.json()["error"]["message"]

"""Buying in a real market: real processes, libp2p, sandboxes, models, signatures and books."""

import base64
import io
import json
import math
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from coordinator.settling.evidence import read_evidence
from tests.integration.conftest import RunningMarket

pytestmark = [pytest.mark.models, pytest.mark.slow]

CHAT = "smollm2-135m-instruct"
EMBEDDING = "all-minilm-l6-v2"
IMAGE = "efficientnet-lite0"


def chat_body(text: str = "Say hello.", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": CHAT, "messages": messages, "max_tokens": 12, "temperature": 0} | changes


def grace_hopper() -> bytes:
    return files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg").read_bytes()


def stream_events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_streamed_answer_equals_the_whole_one(market: RunningMarket) -> None:
    with market.client() as http:
        whole = http.post("/v1/chat/completions", json=chat_body()).raise_for_status()
        body = chat_body(stream=True, stream_options={"include_usage": True})
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            events = stream_events(response)
    text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    answer = whole.json()
    assert text == answer["choices"][0]["message"]["content"]
    assert text
    assert {k: events[-1]["usage"][k] for k in ("prompt_tokens", "completion_tokens")} == {
        k: answer["usage"][k] for k in ("prompt_tokens", "completion_tokens")
    }
    assert whole.headers["x-capacloud-node"].startswith("12D3KooW")
    assert int(whole.headers["x-capacloud-amount-nano"]) > 0


def test_embeddings_know_what_is_alike(market: RunningMarket) -> None:
    texts = ["A cat sat on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    with market.client() as http:
        reply = http.post("/v1/embeddings", json={"model": EMBEDDING, "input": texts})
        encoded = http.post(
            "/v1/embeddings",
            json={"model": EMBEDDING, "input": texts, "encoding_format": "base64"},
        )
    vectors = [entry["embedding"] for entry in reply.raise_for_status().json()["data"]]
    raw = base64.b64decode(encoded.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vectors[0], abs=1e-6)

    def similarity(a: int, b: int) -> float:
        return float(sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True)))

    assert math.hypot(*vectors[0]) == pytest.approx(1.0, abs=1e-3)
    assert similarity(0, 1) > similarity(0, 2) + 0.2


def test_a_photograph_is_classified(market: RunningMarket) -> None:
    image = base64.b64encode(grace_hopper()).decode()
    with market.client() as http:
        as_json = http.post("/v1/images/classifications", json={"model": IMAGE, "image": image})
        as_form = http.post(
            "/v1/images/classifications",
            data={"model": IMAGE},
            files={"image": ("grace.jpg", grace_hopper(), "image/jpeg")},
        )
    labels = as_json.raise_for_status().json()["data"]
    assert labels[0]["label"] == "military uniform"
    assert as_form.raise_for_status().json()["data"] == labels


def png(width: int, height: int) -> bytes:
    """A valid PNG of that size with next to no bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"GIF89a not an image", (400, "invalid_image")),
        (png(20_000, 20_000), (413, "image_too_large")),
        (b"\xff\xd8\xff cut off", (400, "invalid_image")),
    ],
    ids=["no image", "decompression bomb", "broken jpeg"],
)
def test_what_is_no_image_is_refused_and_the_next_one_works(
    market: RunningMarket, content: bytes, expected: tuple[int, str]
) -> None:
    with market.client() as http:
        body = {"model": IMAGE, "image": base64.b64encode(content).decode()}
        refused = http.post("/v1/images/classifications", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == expected
        assert "Traceback" not in refused.text
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
        good = {"model": IMAGE, "image": base64.b64encode(buffer.getvalue()).decode()}
        assert http.post("/v1/images/classifications", json=good).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "smollm2-135m-instruct"}', 400),
        (b'{"model": "nobody-has-this", "messages": [{"role": "user", "content": "x"}]}', 404),
        (json.dumps(chat_body(temperature="hot")).encode(), 400),
        (json.dumps(chat_body(temperature=float("nan"))).encode(), 400),
        (json.dumps(chat_body(max_tokens=0)).encode(), 400),
        (json.dumps(chat_body(max_tokens=-2)).encode(), 400),
        (json.dumps(chat_body("word " * 20_000)).encode(), 400),
        (b" " * (13 * 1024 * 1024), 413),
    ],
    ids=[
        "cut json",
        "no object",
        "no messages",
        "unknown model",
        "wrong type",
        "nan",
        "no tokens",
        "negative",
        "too long",
        "huge body",
    ],
)
def test_bad_requests_are_refused_and_the_next_one_works(
    market: RunningMarket, content: bytes, status: int
) -> None:
    with market.client(**{"Content-Type": "application/json"}) as http:
        refused = http.post("/v1/chat/completions", content=content)
        assert refused.status_code == status, refused.text[:300]
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in refused.text
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_an_unknown_api_key_opens_nothing(market: RunningMarket) -> None:
    with market.client(Authorization="Bearer sk-capa-nobody") as http:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            refused = http.request(method, path, json=chat_body())
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert "sk-capa-nobody" not in refused.text
    with market.client() as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_an_account_without_money_is_told_so(market: RunningMarket) -> None:
    market.try_command("accounts", "create", "poor")
    key = market.command("keys", "create", "poor").strip()
    with market.client(Authorization=f"Bearer {key}") as http:
        refused = http.post("/v1/chat/completions", json=chat_body())
    assert refused.status_code == 402
    assert refused.json()["error"]["code"] == "out_of_funds"
    market.command("accounts", "credit", "poor", "0.01")
    with market.client(Authorization=f"Bearer {key}") as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_a_client_that_hangs_up_is_charged_for_what_it_got_and_nothing_stays_held(
    market: RunningMarket,
) -> None:
    with market.client() as http:
        body = chat_body("Write a long story.", stream=True, max_tokens=400)
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            job_id = response.headers["x-capacloud-job-id"]
            for number, _ in enumerate(response.iter_lines()):
                if number > 6:
                    break
    deadline_s = time.monotonic() + 20
    while True:
        job = json.loads(market.command("jobs", "show", job_id, "--json"))
        if job["state"] == "settled":
            break
        assert time.monotonic() < deadline_s, job
        time.sleep(0.3)
    (receipt,) = job["receipts"]
    assert 0 < receipt["output_tokens"] < 400
    assert market.audit().open_holds == 0


def test_the_command_line_buys_every_task(market: RunningMarket) -> None:
    buyer = market.command("whoami").strip()
    market.try_command("accounts", "create", "terminal", f"--peer-id={buyer}", "--credit=1")
    chat = json.loads(
        market.command("submit", CHAT, "Say hello.", "--max-tokens=8", "--seed=1", "--json")
    )
    assert chat["text"]
    assert chat["job"]["counts_agree"]
    piped = market.command("submit", EMBEDDING, "--json", stdin="one text\n\nanother\n")
    assert len(json.loads(piped)["embeddings"]) == 2
    photo = files("matplotlib").joinpath("mpl-data/sample_data/grace_hopper.jpg")
    image = json.loads(market.command("submit", IMAGE, f"--input={photo}", "--json"))
    assert image["labels"][0]["label"] == "military uniform"
    # The second line is too long for the model: the conversation goes on after its refusal.
    lines = ["Hello!", "word " * 9_000, "/reset", "Hello again!"]
    talk = market.try_command("chat", CHAT, "--max-tokens=8", stdin="\n".join(lines) + "\n")
    assert talk.returncode == 0, talk.stderr
    assert len(talk.stdout.strip().splitlines()) >= 2
    assert talk.stderr.count("[node") == 2
    assert talk.stderr.count("error:") == 1
    unanswered = market.try_command("chat", "no-such-model", stdin="Hello!\n")
    assert unanswered.returncode == 1
    assert unanswered.stderr.count("error:") == 1
    balance = json.loads(market.command("balance", "--json"))
    assert 0 < balance["available_nano"] < 10**9


def test_an_interrupted_command_signs_for_what_it_got(market: RunningMarket) -> None:
    buyer = market.command("whoami").strip()
    market.try_command("accounts", "create", "terminal", f"--peer-id={buyer}", "--credit=1")
    command = [sys.executable, "-m", "coordinator", "submit", CHAT, "Tell a long story."]
    command += ["--max-tokens=400", f"--data-dir={market.data_dir}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    (job, *_) = json.loads(market.command("jobs", "list", f"--account={buyer}", "--json"))
    evidence = read_evidence(market.command("receipts", "export", job["job_id"]))
    assert evidence.acceptance is not None, "its receipt was settled by its own word"
    assert evidence.acceptance.message.agrees
    assert 0 < evidence.receipt.message.units.output_tokens < 400


def test_a_buyer_without_an_account_reads_one_sentence(
    market: RunningMarket, tmp_path: Path
) -> None:
    refused = market.try_command("balance", f"--key={tmp_path / 'new.key'}")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: there is no account")
    assert "Traceback" not in refused.stderr


def test_quotes_and_nodes_explain_themselves(market: RunningMarket) -> None:
    quote = json.loads(market.command("quote", CHAT, "--objective=price", "--json"))
    costs = [candidate["cost_nano"] for candidate in quote["candidates"]]
    assert len(costs) == 3
    assert costs == sorted(costs)
    far = json.loads(market.command("quote", CHAT, "--region=rack", "--json"))
    assert len(far["candidates"]) == 1
    assert all("region" in " ".join(r["reasons"]) for r in far["rejections"])
    nodes = json.loads(market.command("nodes", "--json"))
    rtts = {node["region"]: node["rtt_ms"] for node in nodes}
    assert rtts["rack"] < rtts["city"] < rtts["continent"]
    assert all(node["isolation"] != "none" for node in nodes)


def test_people_get_tables_where_scripts_get_json(market: RunningMarket) -> None:
    with market.client() as http:
        reply = http.post("/v1/chat/completions", json=chat_body()).raise_for_status()
    asked = market.try_command("quote", CHAT, "--objective=latency")
    quote = asked.stdout
    assert re.search(r"node +cost +latency +.*\n.*\n( …\w{8} .*\n){3}", quote), quote
    assert "200 tokens in, 200 tokens out; best first for latency" in asked.stderr
    nodes = market.command("nodes")
    assert all(region in nodes for region in ("rack", "city", "continent"))
    assert reply.headers["x-capacloud-job-id"] in market.command("jobs", "list")
    assert "capture" in market.command("ledger", "show", "demo")


def test_receipts_are_verified_anywhere_and_a_forged_one_is_not(
    market: RunningMarket, tmp_path: Any
) -> None:
    with market.client() as http:
        reply = http.post("/v1/chat/completions", json=chat_body()).raise_for_status()
    job_id = reply.headers["x-capacloud-job-id"]
    deadline_s = time.monotonic() + 10
    while (exported := market.try_command("receipts", "export", job_id)).returncode:
        assert time.monotonic() < deadline_s, exported.stderr
        time.sleep(0.2)
    path = tmp_path / "evidence.json"
    path.write_text(exported.stdout)
    plain = json.loads(verify(path, "--json"))
    assert plain["valid"]
    assert plain["output_tokens"] == reply.json()["usage"]["completion_tokens"]
    evidence = json.loads(exported.stdout)
    forged = bytearray(base64.b64decode(evidence["receipt"]))
    forged[len(forged) // 2] ^= 1
    path.write_text(json.dumps(evidence | {"receipt": base64.b64encode(forged).decode()}))
    with pytest.raises(AssertionError, match=r"signature|malformed|msgpack|expected|envelope"):
        verify(path)


def verify(path: Any, *flags: str) -> str:
    command = [sys.executable, "-m", "coordinator", "receipts", "verify", str(path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_metrics_are_prometheus(market: RunningMarket) -> None:
    with market.client() as http:
        text = http.get("/metrics").raise_for_status().text
        health = http.get("/health")
    assert "capacloud_time_to_first_token_seconds_bucket" in text
    assert health.status_code == 200


def test_workers_are_not_root(market: RunningMarket) -> None:
    workers = [
        process
        for node, pid in market.pids.items()
        if node != "coordinator"
        for process in psutil.Process(pid).children(recursive=True)
        if "capanode.worker.main" in " ".join(process.cmdline())
    ]
    assert len(workers) >= 3
    assert all(uid != 0 for process in workers for uid in process.uids())


def test_only_workers_have_torch_loaded(market: RunningMarket) -> None:
    """A node's parent holds keys and sockets; what computes on strangers' input is elsewhere."""
    for name, pid in market.pids.items():
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in loaded, name
        assert "libcrypto" in loaded or "_rust" in loaded, "it is our program that was looked at"

"""The application around its routes: keys, limits, bodies, errors, and clients that hang up."""

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
import structlog.testing
import trio

from coordinator.gateway.caller import CALLER_TTL_S
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.market_side.market import Health
from tests.coordinator.gateway.fake_market import API_KEY, LIMITED_KEY, FakeMarket, Script
from tests.coordinator.gateway.harness import Harness, exchange, harness
from tests.coordinator.gateway.test_chat import PATH, body, error_of


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [bearer("sk-wrong"), {"authorization": "Basic x"}])
def test_an_unknown_key_is_401_before_the_body_is_read(
    gateway: Harness, headers: dict[str, str]
) -> None:
    response = gateway.request("POST", PATH, content=b"not json", headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert error_of(response)["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_stops_working(gateway: Harness) -> None:
    assert gateway.get("/v1/models").status_code == 200
    gateway.market.revoked.add(API_KEY)
    assert gateway.get("/v1/models").status_code == 200
    gateway.stopwatch.now_s += CALLER_TTL_S
    assert gateway.get("/v1/models").status_code == 401


def test_a_key_has_its_rate(gateway: Harness) -> None:
    first, second, third = (
        gateway.post(PATH, body(), headers=bearer(LIMITED_KEY)) for _ in range(3)
    )
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.status_code == 429
    assert error_of(third)["code"] == "rate_limit_exceeded"
    assert third.headers["retry-after"] == "30"
    gateway.stopwatch.now_s += 30
    assert gateway.post(PATH, body(), headers=bearer(LIMITED_KEY)).status_code == 200


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b'{"model": NaN}', "application/json; charset=utf-8", 400, "invalid_json"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x", "multipart/form-data; boundary=x", 415, "unsupported_media_type"),
        (b"{}", "application/json", 400, "missing_required_parameter"),
    ],
)
def test_bodies_that_are_no_request(
    gateway: Harness, content: bytes, content_type: str, status: int, code: str
) -> None:
    response = gateway.request(
        "POST", PATH, content=content, headers={"content-type": content_type}
    )
    assert response.status_code == status
    assert error_of(response)["code"] == code


def test_a_compressed_body_is_refused(gateway: Harness) -> None:
    response = gateway.request(
        "POST",
        PATH,
        content=gzip.compress(json.dumps(body()).encode()),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert response.status_code == 415


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_bounded_while_it_arrives(announced: bool) -> None:
    with harness(GatewayConfig(body_bytes_max=1_000)) as gateway:

        async def pieces() -> Any:
            for _ in range(100):
                yield b"x" * 100

        response = gateway.request(
            "POST",
            PATH,
            content=b"x" * 10_000 if announced else pieces(),
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 413
        assert error_of(response)["code"] == "input_too_large"
        assert response.headers["connection"] == "close"
        assert gateway.post(PATH, body()).status_code == 200


def test_a_body_that_stalls_is_given_up() -> None:
    with harness(GatewayConfig(body_within_s=0.05)) as gateway:

        async def stall() -> dict[str, Any]:
            running = exchange(gateway.app, PATH, body())
            message = running.incoming.get_nowait()
            running.incoming.put_nowait(message | {"more_body": True})
            return await running.next()

        assert gateway.run(stall())["status"] == 408


def test_unknown_paths_and_methods(gateway: Harness) -> None:
    response = gateway.post("/v1/responses", {})
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"
    response = gateway.get(PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert gateway.request("HEAD", "/health").status_code == 200
    assert gateway.get("/v1/models/").status_code == 404


def test_every_response_has_a_request_id_of_its_own(gateway: Harness) -> None:
    ids = {gateway.get(path).headers["x-request-id"] for path in ("/health", "/nope", "/v1/models")}
    assert len(ids) == 3


def test_more_requests_than_fit_are_told_to_come_back() -> None:
    with harness(GatewayConfig(requests_max=1)) as gateway:
        gateway.market.script = Script(gate_before=0)

        async def two() -> httpx.Response:
            first = exchange(gateway.app, PATH, body())
            await gateway.wait(gateway.market.waiting)
            second = exchange(gateway.app, PATH, body())
            refused = await second.next()
            gateway.in_trio(gateway.market.gate.set)
            assert (await first.next())["status"] == 200
            await asyncio.gather(first.task, second.task)
            return httpx.Response(refused["status"], headers=refused["headers"])

        response = gateway.run(two())
        assert response.status_code == 429
        assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("gate", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_job(gateway: Harness, gate: int, stream: bool) -> None:
    """Before the first token and in the middle, whole and streamed."""
    gateway.market.script = Script(gate_before=gate)

    async def hang_up() -> None:
        running = exchange(gateway.app, PATH, body(stream=stream))
        await gateway.wait(gateway.market.waiting)
        assert gateway.market.cancelled == 0
        running.hang_up()
        await running.task
        await gateway.wait(gateway.market.cancellation)

    gateway.run(hang_up())
    assert (gateway.market.cancelled, gateway.market.finished) == (1, 0)
    gateway.market.script = Script()
    assert gateway.post(PATH, body()).status_code == 200
    assert "capacloud_num_requests_running 1.0" in gateway.get("/metrics").text


def test_a_client_that_hangs_up_while_it_sends_is_forgotten(gateway: Harness) -> None:
    async def hang_up() -> None:
        running = exchange(gateway.app, PATH, body())
        message = running.incoming.get_nowait()
        running.incoming.put_nowait(message | {"more_body": True})
        running.hang_up()
        await running.task
        assert running.messages.empty()

    gateway.run(hang_up())
    assert gateway.market.specs == []


def test_a_silent_job_shows_signs_of_life() -> None:
    """Headers go out early, comments follow, and a failure then comes as an event."""
    with harness(GatewayConfig(keepalive_s=0.01)) as gateway:
        gateway.market.script = Script(gate_before=0)

        async def wait_long() -> bytes:
            running = exchange(gateway.app, PATH, body(stream=True))
            start = await running.next()
            assert start["status"] == 200
            assert b"x-capacloud-node" not in dict(start["headers"])
            parts = [(await running.next())["body"] for _ in range(2)]
            assert parts == [b": keepalive\n\n"] * 2
            gateway.in_trio(gateway.market.gate.set)
            rest = bytearray()
            while True:
                message = await running.next()
                rest += message["body"]
                if not message.get("more_body"):
                    return bytes(rest)

        answer = gateway.run(wait_long())
        assert b'"role":"assistant"' in answer
        assert answer.endswith(b"data: [DONE]\n\n")


def test_a_bug_of_ours_is_a_500_without_its_insides(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: FakeMarket) -> Health:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(FakeMarket, "models", fail)
    with structlog.testing.capture_logs() as logs:
        response = gateway.get("/v1/models")
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "secret" not in response.text
    assert logs[0]["event"] == "gateway_call_crashed"


def test_a_market_that_stops_is_a_503(gateway: Harness) -> None:
    gateway.market.script = Script(gate_before=0)

    async def stop() -> int:
        running = exchange(gateway.app, PATH, body())
        await gateway.wait(gateway.market.waiting)
        gateway.in_trio(_cancel_everything)
        status: int = (await running.next())["status"]
        await running.task
        return status

    assert gateway.run(stop()) == 503


def _cancel_everything() -> None:
    """Cancel the trio run's nursery of calls, as a stopping gateway does."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            for inner in task.child_nurseries:
                inner.cancel_scope.cancel()


def test_browsers_are_kept_out_unless_listed(gateway: Harness) -> None:
    origin = {"origin": "https://chat.example"}
    response = gateway.get("/v1/models", headers=origin)
    assert "access-control-allow-origin" not in response.headers
    assert gateway.request("OPTIONS", PATH, headers=origin).status_code == 405


def test_a_listed_origin_may_read_and_ask_first() -> None:
    with harness(GatewayConfig(cors_origins=("https://chat.example",))) as gateway:
        origin = {"origin": "https://chat.example"}
        response = gateway.get("/v1/models", headers=origin)
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        preflight = gateway.request(
            "OPTIONS",
            PATH,
            headers=origin | {"access-control-request-headers": "authorization,x-y"},
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-y"
        other = gateway.get("/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers

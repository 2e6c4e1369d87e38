"""The application around its routes: keys, limits, bodies, errors, and clients that hang up."""

import asyncio
from typing import Any

import httpx
import pytest
import structlog.testing
import trio

from coordinator.gateway.caller import CALLER_TTL_S
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http import body as body_module
from coordinator.gateway.market_side.market import Health
from tests.coordinator.gateway.fake_market import (
    API_KEY,
    LIMITED_KEY,
    OTHER_KEY,
    FakeMarket,
    Script,
)
from tests.coordinator.gateway.harness import Exchange, Harness, exchange, harness
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
    gateway.clock.monotonic_s += CALLER_TTL_S
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
    gateway.clock.monotonic_s += 30
    assert gateway.post(PATH, body(), headers=bearer(LIMITED_KEY)).status_code == 200


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b'{"model": NaN}', "application/json; charset=utf-8", 400, "invalid_json"),
        (b"{}", "text/plain", 400, "missing_required_parameter"),
        (b"<a/>", "text/html", 415, "unsupported_media_type"),
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
    response = gateway.post("/v1/edits", {})
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"
    response = gateway.get(PATH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert gateway.request("HEAD", "/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/openai/deployments/x/chat/completions", "/v1/chat/completions"),
        ("/healthz", None),
        ("/", None),
    ],
)
def test_a_wrong_base_url_is_told_the_right_path(
    gateway: Harness, path: str, meant: str | None
) -> None:
    response = gateway.post(path, {})
    assert response.status_code == 404
    message = error_of(response)["message"]
    assert message.endswith(f": use {meant}") if meant else "use" not in message


def test_every_response_has_a_request_id_of_its_own(gateway: Harness) -> None:
    ids = {gateway.get(path).headers["x-request-id"] for path in ("/health", "/nope", "/v1/models")}
    assert len(ids) == 3


def test_bodies_without_end_of_one_account_leave_room_for_the_others() -> None:
    with harness(GatewayConfig(requests_max=16)) as gateway:

        async def attack() -> None:
            running = [_endless(gateway) for _ in range(20)]
            # The account's idlest bodies gave way to its newest ones.
            given_up = [await each.next() for each in running[:8]]
            assert {message["status"] for message in given_up} == {408}
            other = exchange(gateway.app, PATH, body(), key=OTHER_KEY)
            assert (await other.next())["status"] == 200
            for each in running:
                each.hang_up()
            await asyncio.gather(other.task, *(each.task for each in running))

        gateway.run(attack())
        assert gateway.post(PATH, body()).status_code == 200


def _endless(gateway: Harness) -> Exchange:
    running = exchange(gateway.app, PATH, body())
    message = running.incoming.get_nowait()
    running.incoming.put_nowait(message | {"body": b"{", "more_body": True})
    return running


def test_bodies_in_flight_are_bounded_in_bytes_per_account() -> None:
    with harness(GatewayConfig(bodies_bytes_max=400_000)) as gateway:
        gateway.market.script = Script(gate_before=0)
        large = body(messages=[{"role": "user", "content": "x" * 6_000}], user="y" * 200_000)

        async def upload() -> int:
            first = exchange(gateway.app, PATH, large)
            await gateway.wait(gateway.market.waiting)
            # The first is parsed: of its bytes only the prompt is still held.
            second = exchange(gateway.app, PATH, large)
            slow = [_endless(gateway) for _ in range(2)]
            for each in slow:
                each.incoming.put_nowait(
                    {"type": "http.request", "body": b" " * 150_000, "more_body": True}
                )
            refused: int = (await slow[1].next())["status"]
            gateway.in_trio(gateway.market.gate.set)
            assert (await first.next())["status"] == (await second.next())["status"] == 200
            slow[0].hang_up()
            await asyncio.gather(first.task, second.task, *(each.task for each in slow))
            return refused

        assert gateway.run(upload()) == 429


def test_a_key_that_is_revoked_while_its_body_arrives_buys_nothing(gateway: Harness) -> None:
    async def revoke() -> int:
        running = exchange(gateway.app, PATH, body())
        whole = running.incoming.get_nowait()
        running.incoming.put_nowait({"type": "http.request", "body": b" ", "more_body": True})
        for _ in range(20):
            await asyncio.sleep(0)
        assert running.incoming.empty()
        gateway.market.revoked.add(API_KEY)
        gateway.clock.monotonic_s += CALLER_TTL_S
        running.incoming.put_nowait(whole)
        status: int = (await running.next())["status"]
        await running.task
        return status

    # The key is known from an earlier request.
    assert gateway.get("/v1/models").status_code == 200
    assert gateway.run(revoke()) == 401
    assert gateway.market.specs == []


def test_a_trickling_body_is_given_up(monkeypatch: pytest.MonkeyPatch, gateway: Harness) -> None:
    """It has to keep up a minimum rate after its first seconds."""
    monkeypatch.setattr(body_module, "GRACE_S", 0.02)

    async def trickle() -> int:
        running = _endless(gateway)
        for _ in range(10_000):
            running.incoming.put_nowait({"type": "http.request", "body": b" ", "more_body": True})
            if not running.messages.empty():
                break
            await asyncio.sleep(0)
        status: int = (await running.next())["status"]
        await running.task
        return status

    assert gateway.run(trickle()) == 408


def test_http_1_0_clients_get_the_events_of_a_stream_in_one_piece(gateway: Harness) -> None:
    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        running = exchange(gateway.app, PATH, body(stream=True), http_version="1.0")
        start, rest = await running.next(), await running.next()
        await running.task
        return start, rest

    start, rest = gateway.run(ask())
    assert dict(start["headers"])[b"content-length"] == str(len(rest["body"])).encode()
    assert rest["body"].endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("127.0.0.1", {"x-forwarded-for": "203.0.113.7"}, 403),
        ("203.0.113.7", {}, 403),
        ("", {}, 403),
    ],
)
def test_metrics_are_for_this_machine(
    gateway: Harness, client: str, headers: dict[str, str], status: int
) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=gateway.app, client=(client, 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.get("/metrics", headers=headers)

    assert gateway.run(ask()).status_code == status


def test_strangers_cost_the_market_one_look_a_second(gateway: Harness) -> None:
    async def ask_often() -> None:
        transport = httpx.ASGITransport(app=gateway.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            await asyncio.gather(*(http.get(f"/{path}") for path in ("health", "metrics") * 20))

    gateway.run(ask_often())
    assert gateway.market.looks == 2
    gateway.clock.monotonic_s += 1
    gateway.run(ask_often())
    assert gateway.market.looks == 4


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
    asking = origin | {"access-control-request-method": "POST"}
    refused = gateway.request("OPTIONS", PATH, headers=asking)
    assert refused.status_code == 403
    assert "cors_origins" in error_of(refused)["message"]
    assert gateway.request("OPTIONS", PATH, headers=origin).status_code == 405


def test_a_listed_origin_may_read_and_ask_first() -> None:
    with harness(GatewayConfig(cors_origins=("https://chat.example",))) as gateway:
        origin = {"origin": "https://chat.example"}
        response = gateway.get("/v1/models", headers=origin)
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        preflight = gateway.request(
            "OPTIONS",
            PATH,
            headers=origin
            | {
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-y",
                "access-control-request-private-network": "true",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-y"
        assert preflight.headers["access-control-allow-private-network"] == "true"
        other = gateway.get("/v1/models", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/v1/messages/batches", {"type", "error"}),
        ("/v1/messages", {"type", "error"}),
        ("/v1/moderations", {"error"}),
        ("/v2/repository/index", {"error"}),
        ("/nope", {"error"}),
    ],
)
def test_a_path_without_a_route_is_told_in_the_words_of_its_api(
    gateway: Harness, path: str, keys: set[str]
) -> None:
    response = gateway.get(path)
    assert response.status_code in (404, 405)
    assert set(response.json()) == keys
    # The Open Inference Protocol has a text there.
    assert isinstance(response.json()["error"], str) == path.startswith("/v2")

"""HTTP as clients speak it, over all routes: base URLs, preflights, compressed bodies."""

import bz2
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.all_routes import make_routes
from coordinator.gateway.http.routes import Route, Router
from coordinator.gateway.http.unpacking import PIECE_BYTES, Unpacker
from tests.coordinator.gateway.fake_market import LIMITED_KEY
from tests.coordinator.gateway.harness import Harness, harness
from tests.coordinator.gateway.test_chat import PATH, body, error_of

ROUTES = make_routes()
ORIGIN = {"origin": "https://chat.example"}

over_all_routes = pytest.mark.parametrize(
    "route", ROUTES, ids=[f"{route.method} {route.template}" for route in ROUTES]
)


def path_of(route: Route) -> str:
    return re.sub(r"\{[^}]*\}", "tiny-chat", route.template)


def deflate_without_frame(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", deflate_without_frame),
]


@over_all_routes
@pytest.mark.parametrize("wrong", ["/v1{}", "{}/", "//{}", "{}//", "/v1/v1{}"])
def test_base_urls_that_are_nearly_right_are_answered(route: Route, wrong: str) -> None:
    path = wrong.format(path_of(route))
    found = Router(ROUTES).find({"method": route.method, "path": path})
    assert found.route.template == route.template
    assert set(found.parameters.values()) <= {"tiny-chat"}


@over_all_routes
def test_a_base_url_without_the_version_is_answered(route: Route) -> None:
    path = path_of(route).removeprefix("/v1")
    found = Router(ROUTES).find({"method": route.method, "path": path})
    assert found.route.template == route.template


@pytest.mark.parametrize("path", ["/v1/v1/chat/completions", "/chat//completions/"])
def test_a_nearly_right_url_buys(gateway: Harness, path: str) -> None:
    assert gateway.post(path, body()).status_code == 200


@over_all_routes
def test_a_page_that_is_listed_may_ask_before_any_request(route: Route) -> None:
    with harness(GatewayConfig(cors_origins=(ORIGIN["origin"],))) as gateway:
        headers = ORIGIN | {
            "access-control-request-method": route.method,
            "access-control-request-headers": "authorization,anthropic-version",
            "access-control-request-private-network": "true",
        }
        # A browser sends no key with it.
        answer = gateway.request("OPTIONS", path_of(route), headers=headers | {"authorization": ""})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
        assert answer.headers["access-control-allow-headers"] == "authorization,anthropic-version"
        assert answer.headers["access-control-allow-private-network"] == "true"
        assert route.method in answer.headers["access-control-allow-methods"]


def test_a_page_may_read_why_it_was_refused() -> None:
    with harness(GatewayConfig(cors_origins=("*",))) as gateway:
        refused = [
            gateway.post(PATH, body(), headers=ORIGIN | {"authorization": "Bearer wrong"}),
            *(
                gateway.post(PATH, body(), headers=ORIGIN | {"authorization": f"Bearer {key}"})
                for key in [LIMITED_KEY] * 3
            ),
            gateway.post("/v1/nothing", headers=ORIGIN),
        ]
        assert [answer.status_code for answer in refused] == [401, 200, 200, 429, 404]
        for answer in refused:
            assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
            assert "retry-after" in answer.headers["access-control-expose-headers"]


def test_a_page_that_is_not_listed_is_told_of_the_setting(gateway: Harness) -> None:
    headers = ORIGIN | {"access-control-request-method": "POST"}
    message = error_of(gateway.request("OPTIONS", PATH, headers=headers))["message"]
    assert "cors_origins" in message
    assert "--cors-origins" in message


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
def test_a_compressed_body_is_unpacked(
    gateway: Harness, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    response = gateway.request(
        "POST",
        PATH,
        content=pack(json.dumps(body()).encode()),
        headers={"content-type": "application/json", "content-encoding": encoding},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "content", "status", "code"),
    [
        ("zstd", b"x", 415, "unsupported_content_encoding"),
        ("br", b"x", 415, "unsupported_content_encoding"),
        ("bzip2", bz2.compress(b"{}"), 415, "unsupported_content_encoding"),
        (
            "gzip, gzip",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            415,
            "unsupported_content_encoding",
        ),
        ("gzip", b"{}", 400, "invalid_encoding"),
        ("gzip", gzip.compress(b"{}" * 99, mtime=0)[:-9], 400, "invalid_encoding"),
        ("gzip", b"", 400, "invalid_encoding"),
        ("deflate", zlib.compress(b"{}") + b"more", 400, "invalid_encoding"),
        ("gzip", gzip.compress(b"", mtime=0) * 100, 400, "invalid_encoding"),
        ("gzip", gzip.compress(b"[" * 5_000_000, mtime=0), 400, "invalid_encoding"),
        ("gzip", gzip.compress(b"[" * 100_000, mtime=0), 413, "input_too_large"),
    ],
)
def test_what_cannot_be_unpacked_within_bounds_is_refused(
    encoding: str, content: bytes, status: int, code: str
) -> None:
    with harness(GatewayConfig(body_bytes_max=90_000 if status == 413 else 8_000_000)) as gateway:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        response = gateway.request("POST", PATH, content=content, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (status, code)
        if status == 415:
            assert encoding in error_of(response)["message"]
            assert response.headers["accept-encoding"] == "gzip, deflate"
        assert gateway.post(PATH, body()).status_code == 200


def test_unpacked_bytes_count_against_the_bodies_in_flight() -> None:
    packed = gzip.compress(json.dumps(body(z="y" * 200_000)).encode())
    assert len(packed) < 2_000
    with harness(GatewayConfig(bodies_bytes_max=100_000)) as gateway:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        response = gateway.request("POST", PATH, content=packed, headers=headers)
        assert response.status_code == 429


@given(
    data=st.binary(max_size=3_000).map(lambda piece: piece * 50),
    cuts=st.lists(st.integers(1, 5_000), min_size=1, max_size=8),
    packer=st.sampled_from(PACKERS[1:3]),
)
def test_a_body_unpacks_alike_however_it_is_cut(
    data: bytes, cuts: list[int], packer: tuple[str, Callable[[bytes], bytes]]
) -> None:
    encoding, pack = packer
    packed, unpacker = pack(data), Unpacker(encoding.lower())
    parts: list[bytes] = []
    for size in itertools.cycle(cuts):
        parts += unpacker.unpack(packed[:size])
        packed = packed[size:]
        if not packed:
            break
    unpacker.check_end()
    assert b"".join(parts) == data
    assert all(len(part) <= PIECE_BYTES for part in parts)


@given(st.binary(max_size=2_000), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_crash_the_unpacker(data: bytes, encoding: str) -> None:
    unpacker = Unpacker(encoding)
    with suppress(ApiError):
        list(unpacker.unpack(data))
        unpacker.check_end()


def test_a_silent_stream_says_often_enough_that_it_is_alive() -> None:
    """Proxies cut after 30 s, some after 20 s."""
    assert GatewayConfig().keepalive_s <= 15

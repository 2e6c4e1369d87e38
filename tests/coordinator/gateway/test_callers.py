"""Who gets in, and how long a revoked key still does."""

import asyncio

import httpx
import pytest

from coordinator.gateway.caller import CALLER_TTL_S, Caller
from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.callers import Callers
from tests.coordinator.gateway.fake_market import API_KEY, CLIENT_KEY
from tests.coordinator.gateway.harness import Harness

CALLER = Caller("key-1", CLIENT_KEY)


class KeyService:
    """Knows one key, until it is revoked."""

    def __init__(self) -> None:
        self.lookups = 0
        self.known = {"sk-good": CALLER}
        self.now = 0.0

    async def authenticate(self, secret: str) -> Caller | None:
        self.lookups += 1
        await asyncio.sleep(0)
        return self.known.get(secret)


@pytest.fixture
def service() -> KeyService:
    return KeyService()


@pytest.fixture
def callers(service: KeyService) -> Callers:
    return Callers(service.authenticate, monotonic=lambda: service.now)


def test_a_good_key_is_looked_up_once_per_period(service: KeyService, callers: Callers) -> None:
    async def several() -> None:
        for _ in range(5):
            assert await callers.identify("Bearer sk-good") is CALLER
        assert service.lookups == 1
        service.now += CALLER_TTL_S
        assert await callers.identify("bearer  sk-good") is CALLER
        assert service.lookups == 2

    asyncio.run(several())


def test_requests_that_arrive_together_share_a_lookup(
    service: KeyService, callers: Callers
) -> None:
    async def together() -> None:
        await asyncio.gather(*(callers.identify("Bearer sk-good") for _ in range(20)))
        assert service.lookups == 1

    asyncio.run(together())


def test_a_request_that_is_given_up_leaves_the_lookup_to_others(
    service: KeyService, callers: Callers
) -> None:
    async def one_leaves() -> None:
        first, second = (
            asyncio.ensure_future(callers.identify("Bearer sk-good")) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        assert await second is CALLER
        assert first.cancelled()

    asyncio.run(one_leaves())


def test_a_revoked_key_stops_working_within_the_period(
    service: KeyService, callers: Callers
) -> None:
    async def revoke() -> None:
        await callers.identify("Bearer sk-good")
        service.known.clear()
        service.now += CALLER_TTL_S
        with pytest.raises(ApiError, match="revoked"):
            await callers.identify("Bearer sk-good")

    asyncio.run(revoke())


def test_an_unknown_key_is_remembered_too(service: KeyService, callers: Callers) -> None:
    async def repeat() -> None:
        for _ in range(3):
            with pytest.raises(ApiError):
                await callers.identify("Bearer sk-bad")
        assert service.lookups == 1

    asyncio.run(repeat())


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "sk-good", "Bearer " + "x" * 300]
)
def test_what_is_no_bearer_key_is_not_even_looked_up(
    service: KeyService, callers: Callers, header: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(callers.identify(header))
    assert (caught.value.problem.status, caught.value.problem.code) == (401, "unknown_api_key")
    assert service.lookups == 0


def test_a_failed_lookup_is_not_remembered(service: KeyService) -> None:
    async def fail_once() -> None:
        answers: list[ApiError | Caller] = [ApiError(Problem(503, "down")), CALLER]

        async def authenticate(_secret: str) -> Caller | None:
            answer = answers.pop(0)
            if isinstance(answer, ApiError):
                raise answer
            return answer

        callers = Callers(authenticate, monotonic=lambda: 0.0)
        with pytest.raises(ApiError, match="down"):
            await callers.identify("Bearer sk-good")
        assert await callers.identify("Bearer sk-good") is CALLER

    asyncio.run(fail_once())


def test_the_cache_is_bounded(
    service: KeyService, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.gateway.http.callers._CACHE_MAX", 2)

    async def many() -> None:
        for number in range(5):
            with pytest.raises(ApiError):
                await callers.identify(f"Bearer sk-{number}")
        asked = service.lookups
        for number in (4, 0):
            with pytest.raises(ApiError):
                await callers.identify(f"Bearer sk-{number}")
        assert service.lookups == asked + 1, "the youngest is known, the oldest was forgotten"

    asyncio.run(many())


def test_a_key_may_come_where_anthropics_clients_have_it(gateway: Harness) -> None:
    for headers, status in [
        ({"x-api-key": API_KEY}, 200),
        ({"x-api-key": "sk-wrong"}, 401),
        ({"x-api-key": API_KEY, "authorization": "Bearer sk-wrong"}, 401),
        ({}, 401),
    ]:

        async def ask(headers: dict[str, str] = headers) -> int:
            transport = httpx.ASGITransport(app=gateway.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                return (await http.get("/v1/models", headers=headers)).status_code

        assert gateway.run(ask()) == status

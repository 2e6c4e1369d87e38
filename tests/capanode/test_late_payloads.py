"""A node and leases whose payloads are named when they are opened."""

from dataclasses import replace
from typing import Any

import trio
from trio.testing import MockClock

from protocol.client_session import ClientJob, Ended
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.features import Feature
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.late_payloads import PayloadBinding
from protocol.messages import Constraints, JobRequest, Lease
from protocol.payload import SaltedPayload
from protocol.pricing import Units
from protocol.receipts import Evidence, verify_chain
from tests.capanode.fakes import UNITS_MAX, Client, Market, open_market
from tests.capanode.test_jobs import refused
from tests.protocol.makers import CLIENT, COORDINATOR, SALT

PAYLOAD = encode(GenerationInput(max_tokens=3, prompt="hello"))


def lease_ahead(market: Market) -> tuple[Signed[JobRequest], Signed[Lease]]:
    asked = market.request(
        b"later", payload_digest=None, payload_bytes=1_000, constraints=Constraints(features=AHEAD)
    )
    request = seal(CLIENT, asked)
    return request, seal(COORDINATOR, market.lease(request))


AHEAD = (Feature.LATE_PAYLOAD,)


async def open_ahead(
    market: Market,
    request: Signed[JobRequest],
    lease: Signed[Lease],
    payload: bytes = PAYLOAD,
    **changes: Any,
) -> Client:
    salted = SaltedPayload(payload, SALT)
    binding = replace(PayloadBinding(salted.digest, len(payload), UNITS_MAX), **changes)
    job = ClientJob(request, lease, salted, CLIENT, binding=binding)
    client = Client(job, await market.channel(), market.clock)
    client.open()
    return client


async def test_a_lease_ahead_runs_the_payload_that_its_opening_names(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        request, lease = lease_ahead(market)
        ended = await (await open_ahead(market, request, lease)).end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert ended.receipt.message.units.output_tokens == 3
        proof = verify_chain(Evidence(request, lease, ended.receipt))
        assert proof.is_opened
        assert proof.units_max == UNITS_MAX


async def test_a_lease_ahead_is_good_for_one_payload(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        request, lease = lease_ahead(market)
        assert isinstance(await (await open_ahead(market, request, lease)).end(), Ended)
        other = encode(GenerationInput(max_tokens=2, prompt="more"))
        again = await open_ahead(market, request, lease, other)
        assert refused(await again.end()).code is Code.REPLAYED


async def test_an_answer_ends_at_what_the_opening_allows(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        request, lease = lease_ahead(market)
        few = replace(UNITS_MAX, output_tokens=1)
        ended = await (await open_ahead(market, request, lease, units_max=few)).end()
        assert isinstance(ended, Ended)
        assert ended.receipt.message.units.output_tokens == 1


async def test_a_lease_ahead_is_given_back_by_an_opening_without_a_payload(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        request, lease = lease_ahead(market)
        nothing = SaltedPayload(b"", SALT)
        binding = PayloadBinding(nothing.digest, 1, Units(input_tokens=1))
        job = ClientJob(request, lease, nothing, CLIENT, binding=binding)
        client = Client(job, await market.channel(), market.clock)
        client.open()
        client.channel.send_nowait(FrameType.JOB_CANCEL, b"")
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert (ended.receipt.message.amount_nano, ended.receipt.message.code) == (0, "cancelled")
        verify_chain(Evidence(request, lease, ended.receipt))
        await trio.sleep(1)
        assert market.server.live_jobs == 0

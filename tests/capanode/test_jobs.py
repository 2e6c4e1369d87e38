from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from capanode.admission import UPLOAD_BYTES_MAX, UPLOAD_BYTES_PER_CLIENT_MAX
from capanode.engines.base import Completed, EngineInfo, Produced, Started
from capanode.errors import OutboxFullError
from capanode.jobs.closing import ACCEPTANCE_WITHIN_S
from capanode.jobs.ending import SIGN_WITHIN_S
from capanode.jobs.upload import UPLOAD_PAUSE_S
from capanode.outbox import FULL_RETRY_S
from protocol.client_session import Admitted, ClientJob, Ended, Refused
from protocol.codec import encode
from protocol.countersigning import read_proof
from protocol.endings import Finish
from protocol.envelope import open_envelope, seal
from protocol.errors import Code, ErrorBody
from protocol.framing import FrameType
from protocol.generation import GenerationInput, TokensOutput
from protocol.job_frames import OpenBody, Outgoing
from protocol.keys import SigningKey
from protocol.limits import CLOCK_SKEW_MAX_MS, PAYLOAD_BYTES_MAX
from protocol.messages import Constraints, DataCollection, IsolationTier, Receipt, Task
from protocol.net.channels import Channel
from protocol.payload import Chunk, SaltedPayload, salted_digest, tokens_digest
from protocol.pricing import PriceSheet, Units, cost_nano
from tests.capanode.fakes import STEP_S, UNITS_MAX, Client, Market, Setup, SlowDisk, open_market
from tests.protocol.makers import CLIENT, COORDINATOR, SALT, STRANGER, make_opening


async def waiting(market: Market) -> int:
    return sum(e.jobs for e in await market.outbox.earnings() if e.state == "waiting")


def refused(event: object) -> Refused:
    assert isinstance(event, Refused)
    return event


async def test_a_job_runs_to_a_receipt_that_the_client_agrees_with(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(5, prompt="hello")
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        billed = ended.receipt.message
        assert billed.units == Units(input_tokens=5, output_tokens=5)
        assert billed.finish is Finish.LENGTH
        assert billed.amount_nano == cost_nano(market.model.price, billed.units)
        assert client.events[0] == Admitted(Units(input_tokens=5), 0)
        assert "".join(e.text for e in client.events if isinstance(e, Chunk)) == "t0 t1 t2 t3 t4 "
        assert billed.first_output_ms <= billed.total_ms
        assert market.model.seats.running == market.server.live_jobs == 0


async def test_the_receipt_says_what_the_answer_can_be_checked_by(
    autojump_clock: MockClock,
) -> None:
    tokens = tokens_digest(((1, 2, 3),), prefix_tokens=1)
    async with open_market() as market:
        market.worker.info = EngineInfo(Task.CAUSAL_LM, 2, 2048, "bf16", "llama/1 weights=bf16")
        client = await market.open(1)
        (job_id,) = market.worker.live
        market.worker.live.clear()
        started = Started(job_id, Units(input_tokens=5), tokens, prefix_tokens=1)
        finished = Completed(job_id, "stop", started.input_units, end_token=2)
        market.worker.book.deliver([started, finished])
        ended = await client.end()
        assert isinstance(ended, Ended)
        stated = ended.receipt.message
        assert (stated.prefix_tokens, stated.end_token) == (1, 2)
        assert stated.profile == "llama/1 weights=bf16"
        # Without the salt nobody can guess a short prompt from it.
        assert stated.input_digest == salted_digest(bytes.fromhex(tokens), SALT)


async def test_each_request_decides_the_seed_of_its_own_answer(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        for _ in range(2):
            await (await market.open(1)).end()
        first, second = (terms.seed for terms in market.worker.terms)
        assert first != second
        assert min(first, second) > 0


async def test_the_receipt_is_durable_before_the_client_sees_it(autojump_clock: MockClock) -> None:
    async with open_market(Setup(disk=SlowDisk())) as market:
        client = await market.open(1)
        ended = await client.end()
        assert isinstance(ended, Ended)
        (stored,) = market.store.load()
        assert stored.receipt == ended.receipt.raw


async def test_the_clients_acceptance_joins_its_receipt(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(1)
        ended = await client.end()
        assert isinstance(ended, Ended)
        acceptance = client.accept(ended)
        (stored,) = await market.outbox.wait_due(COORDINATOR.peer_id, limit=10)
        assert stored.acceptance == acceptance.raw


async def test_two_jobs_run_side_by_side_on_one_stream(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        clients = [await market.open(20), await market.open(20)]
        started_at = trio.current_time()
        for client in clients:
            assert isinstance(await client.end(), Ended)
        assert trio.current_time() - started_at < 25 * STEP_S
        assert market.worker.most_live == 2


async def test_jobs_beyond_the_slots_wait_their_turn_and_say_so(autojump_clock: MockClock) -> None:
    async with open_market(Setup(slots=1, queue_max=2)) as market:
        clients = [await market.open(5) for _ in range(3)]
        for place, client in enumerate(clients):
            ended = await client.end()
            assert isinstance(ended, Ended)
            accepted = client.events[0]
            assert isinstance(accepted, Admitted)
            assert accepted.queue_position == place
            assert (ended.receipt.message.queued_ms > 0) == (place > 0)
        assert market.worker.most_live == 1


async def test_a_full_queue_refuses_with_a_receipt_of_nothing(autojump_clock: MockClock) -> None:
    async with open_market(Setup(slots=1, queue_max=1)) as market:
        clients = [await market.open(50) for _ in range(3)]
        refusal = refused(await clients[2].end())
        assert refusal.code is Code.BUSY
        assert refusal.retry_after_ms
        assert refusal.ended is not None
        assert refusal.ended.agrees
        billed = refusal.ended.receipt.message
        assert (billed.amount_nano, billed.finish) == (0, Finish.REFUSED)
        assert isinstance(await clients[0].end(), Ended)


async def test_one_client_does_not_get_all_the_seats(autojump_clock: MockClock) -> None:
    async with open_market(Setup(slots=4, per_client_max=1)) as market:
        first, second = await market.open(5), await market.open(5)
        assert refused(await second.end()).code is Code.BUSY
        assert isinstance(await first.end(), Ended)
        assert isinstance(await (await market.open(5)).end(), Ended)


async def test_a_cancelled_job_frees_its_slot_at_once_and_bills_what_came(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1)) as market:
        client = await market.open(50)
        following = await market.open(1)
        while client.job.units.output_tokens < 3:
            await client.next()
        client.cancel()
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert ended.receipt.message.finish is Finish.CANCELLED
        assert ended.receipt.message.units.output_tokens == client.job.units.output_tokens < 50
        cancelled_at = trio.current_time()
        assert isinstance(await following.end(), Ended)
        assert trio.current_time() - cancelled_at < 5 * STEP_S


async def test_cancelling_in_the_queue_is_free(autojump_clock: MockClock) -> None:
    async with open_market(Setup(slots=1)) as market:
        running = await market.open(20)
        client = await market.open(5)
        await running.next()
        client.cancel()
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.receipt.message.amount_nano == 0
        assert market.model.seats.queued == 0
        assert isinstance(await running.end(), Ended)


async def test_a_client_that_goes_away_is_billed_for_what_was_streamed(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(50)
        while client.job.units.output_tokens < 3:
            await client.next()
        client.channel.close()
        await trio.sleep(5 * STEP_S)
        assert market.model.seats.running == len(market.worker.live) == 0
        (stored,) = market.store.load()
        assert stored.amount_nano > 0


async def test_a_client_whose_connection_dies_frees_its_slot(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(50)
        await client.next()
        market.network.kill(CLIENT.peer_id)
        await trio.sleep(60)
        assert market.model.seats.running == market.server.live_jobs == 0


async def test_a_job_is_cut_at_its_deadline(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        now_ms = market.clock.now_ms()
        client = await market.open(50, deadline_at_ms=now_ms + 200)
        refusal = refused(await client.end())
        assert refusal.code is Code.DEADLINE_EXCEEDED
        assert refusal.ended is not None
        assert refusal.ended.agrees
        assert 0 < refusal.ended.receipt.message.units.output_tokens < 50
        assert market.model.seats.running == len(market.worker.live) == 0


async def test_a_job_does_not_wait_in_the_queue_beyond_its_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1)) as market:
        running = await market.open(50)
        late = await market.open(5, deadline_at_ms=market.clock.now_ms() + 100)
        refusal = refused(await late.end())
        assert refusal.code is Code.DEADLINE_EXCEEDED
        assert refusal.ended is not None
        assert refusal.ended.receipt.message.amount_nano == 0
        assert isinstance(await running.end(), Ended)


@pytest.mark.parametrize("code", [Code.WORKER_CRASHED, Code.WORKER_HUNG, Code.OUT_OF_MEMORY])
async def test_a_worker_that_ends_mid_stream_owes_an_error_and_a_receipt(
    autojump_clock: MockClock, code: Code
) -> None:
    async with open_market() as market:
        client = await market.open(50)
        while client.job.units.output_tokens < 3:
            await client.next()
        market.worker.crash(code)
        refusal = refused(await client.end())
        assert refusal.code is code
        assert "secret" not in refusal.message
        assert refusal.ended is not None
        assert refusal.ended.agrees
        billed = refusal.ended.receipt.message
        assert billed.units.output_tokens == client.job.units.output_tokens
        assert billed.amount_nano == cost_nano(market.model.price, billed.units)


async def test_a_worker_that_crashes_before_output_costs_nothing(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(50)
        await client.next()
        market.worker.crash()
        refusal = refused(await client.end())
        assert refusal.ended is not None
        assert refusal.ended.receipt.message.amount_nano == 0


async def test_jobs_in_the_queue_of_a_crashed_worker_are_sent_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1)) as market:
        running, queued = await market.open(50), await market.open(5)
        await running.next()
        market.worker.crash()
        assert refused(await running.end()).code is Code.WORKER_CRASHED
        assert refused(await queued.end()).code is Code.MODEL_UNAVAILABLE
        assert market.server.live_jobs == 0


async def test_an_input_that_counts_more_than_leased_is_refused_for_free(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(5, prompt="x" * (UNITS_MAX.input_tokens + 1))
        refusal = refused(await client.end())
        assert refusal.code is Code.INPUT_TOO_LARGE
        assert refusal.ended is not None
        assert refusal.ended.receipt.message.amount_nano == 0
        assert not market.worker.live


async def test_output_beyond_the_lease_is_never_sent(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(UNITS_MAX.output_tokens + 5)
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert ended.receipt.message.finish is Finish.LENGTH
        assert client.job.units.output_tokens == UNITS_MAX.output_tokens


async def test_what_is_billed_is_what_was_streamed_not_what_the_worker_says(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(5)
        (job_id,) = market.worker.live
        market.worker.live.clear()
        market.worker.book.deliver(
            [
                Started(job_id, Units(input_tokens=5)),
                Produced(job_id, (1, 2), "two tokens"),
                Completed(job_id, "stop", Units(input_tokens=5, output_tokens=40)),
            ]
        )
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert ended.receipt.message.units.output_tokens == 2


async def test_a_large_output_travels_in_pieces(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(5)
        (job_id,) = market.worker.live
        market.worker.live.clear()
        data = bytes(range(256)) * 4096
        market.worker.book.deliver(
            [
                Started(job_id, Units(input_tokens=5)),
                Produced(job_id, (), "", data),
                Completed(job_id, "complete", Units(input_tokens=5)),
            ]
        )
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert b"".join(e.data for e in client.events if isinstance(e, Chunk)) == data


async def test_a_payload_in_many_frames_is_put_together(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        padding = ("stop",) * 8
        payload = encode(GenerationInput(max_tokens=2, prompt="x" * 90, stop=padding))
        request = seal(CLIENT, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request))
        client = await market.open_as(request, lease, payload)
        assert isinstance(await client.end(), Ended)


async def test_an_upload_that_stalls_keeps_nobody_waiting_and_is_dropped_soon(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1, queue_max=0)) as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x" * 300_000))
        request = seal(CLIENT, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request))
        channel = await market.channel()
        opening = seal(CLIENT, make_opening(lease))
        body = OpenBody(request.raw, lease.raw, opening.raw, SALT, payload[:10])
        channel.send_nowait(FrameType.JOB_OPEN, encode(body))
        await trio.sleep(1)
        assert market.server.live_jobs == 1
        assert isinstance(await (await market.open(1)).end(), Ended)
        await trio.sleep(UPLOAD_PAUSE_S)
        assert market.server.live_jobs == market.admission.uploading == 0


async def begin_upload(market: Market, payload: bytes) -> tuple[Channel, ClientJob, list[Outgoing]]:
    """Open a job with a part of its payload; returns the frames with the rest."""
    request = seal(CLIENT, market.request(payload))
    lease = seal(COORDINATOR, market.lease(request))
    job = ClientJob(request, lease, SaltedPayload(payload, SALT), CLIENT)
    first, *rest = job.open(now_ms=market.clock.now_ms())
    channel = await market.channel()
    channel.send_nowait(*first)
    await trio.sleep(0.1)
    return channel, job, rest


async def test_an_upload_is_told_to_its_coordinator_until_it_is_whole(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        opened = market.admission.opened
        payload = encode(GenerationInput(max_tokens=2, prompt="x" * 300_000))
        channel, _, rest = await begin_upload(market, payload)
        assert opened.arriving(COORDINATOR.peer_id) == opened.untold(COORDINATOR.peer_id)
        assert opened.arriving(STRANGER.peer_id) == ()
        assert market.admission.uploading == 1
        for frame in rest:
            channel.send_nowait(*frame)
        await trio.sleep(0.1)
        assert opened.arriving(COORDINATOR.peer_id) == ()


async def test_an_upload_whose_room_is_needed_is_refused_as_by_a_busy_node(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=64, per_client_max=64)) as market:
        large = bytes(PAYLOAD_BYTES_MAX)
        uploads = [
            await begin_upload(market, large)
            for _ in range(UPLOAD_BYTES_PER_CLIENT_MAX // PAYLOAD_BYTES_MAX)
        ]
        rest = UPLOAD_BYTES_MAX // PAYLOAD_BYTES_MAX - len(uploads)
        for number in range(rest + 1):
            key = SigningKey(bytes([64 + number]) * 32)
            request = seal(key, market.request(large, key=key))
            lease = seal(COORDINATOR, market.lease(request))
            now_ms = market.clock.now_ms()
            market.admission.admit(request, lease, upload_bytes=len(large), now_ms=now_ms)
        channel, job, _ = uploads[0]
        frame = await channel.receive()
        answer = refused(job.receive(frame.type, frame.body))
        assert answer.code is Code.BUSY
        assert answer.ended is not None
        assert answer.ended.receipt.message.amount_nano == 0
        assert market.server.live_jobs == len(uploads) - 1


# Refusals without a receipt: the lease is not ours, or not fresh.


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": STRANGER.peer_id}, Code.WRONG_AUDIENCE),
        ({"client": STRANGER.peer_id}, Code.WRONG_SIGNER),
        ({"coordinator": STRANGER.peer_id}, Code.WRONG_SIGNER),
        ({"request_digest": "0" * 64}, Code.DIGEST_MISMATCH),
        ({"ceiling_nano": 0}, Code.PRICE_MISMATCH),
        ({"units_max": Units(input_tokens=100, output_tokens=51)}, Code.PRICE_MISMATCH),
    ],
)
async def test_a_lease_that_is_not_ours_is_refused_without_a_receipt(
    autojump_clock: MockClock, changes: dict[str, Any], code: Code
) -> None:
    async with open_market() as market:
        refusal = refused(await (await market.open(**changes)).end())
        assert refusal.code is code
        assert refusal.ended is None
        assert await waiting(market) == 0


@pytest.mark.parametrize(
    ("offset_ms", "code"), [(-61_000, Code.EXPIRED), (31_000, Code.NOT_YET_VALID)]
)
async def test_a_lease_outside_the_clock_window_is_refused(
    autojump_clock: MockClock, offset_ms: int, code: Code
) -> None:
    async with open_market() as market:
        now_ms = market.clock.now_ms() + offset_ms
        client = await market.open(issued_at_ms=now_ms, open_before_ms=now_ms + 30_000)
        refusal = refused(await client.end())
        assert refusal.code is code
        assert refusal.ended is None


async def test_a_lease_that_could_be_opened_for_ever_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(open_before_ms=market.clock.now_ms() + 31_000)
        assert refused(await client.end()).code is Code.MALFORMED


async def test_a_lease_of_a_coordinator_that_is_not_listed_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(coordinators=frozenset({STRANGER.peer_id}))) as market:
        assert refused(await (await market.open()).end()).code is Code.UNTRUSTED_COORDINATOR


async def test_a_lease_that_nobody_trusted_signed_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x"))
        request = seal(CLIENT, market.request(payload))
        client = await market.open_as(request, seal(STRANGER, market.lease(request)), payload)
        assert refused(await client.end()).code is Code.UNTRUSTED_COORDINATOR


async def test_a_request_that_its_client_did_not_sign_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x"))
        request = seal(STRANGER, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request, client=CLIENT.peer_id))
        client = await market.open_as(request, lease, payload)
        assert refused(await client.end()).code is Code.WRONG_SIGNER


async def test_a_broken_signature_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x"))
        request = seal(CLIENT, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request))
        broken = replace(lease, raw=lease.raw[:-1] + bytes([lease.raw[-1] ^ 1]))
        client = await market.open_as(request, broken, payload)
        assert refused(await client.end()).code is Code.BAD_SIGNATURE


async def test_another_payload_than_the_pinned_one_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x"))
        other = encode(GenerationInput(max_tokens=2, prompt="y"))
        request = seal(CLIENT, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request))
        client = await market.open_as(request, lease, other)
        assert refused(await client.end()).code is Code.DIGEST_MISMATCH
        assert market.server.live_jobs == 0


async def test_a_lease_is_good_for_one_opening(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=2, prompt="x"))
        request = seal(CLIENT, market.request(payload))
        lease = seal(COORDINATOR, market.lease(request))
        assert isinstance(await (await market.open_as(request, lease, payload)).end(), Ended)
        again = refused(await (await market.open_as(request, lease, payload)).end())
        assert again.code is Code.REPLAYED
        assert again.ended is None
        assert await waiting(market) == 1


# Refusals with a receipt of nothing: a good lease that this node cannot serve.


async def code_of_refusal(market: Market, **lease: Any) -> Code:
    refusal = refused(await (await market.open(**lease)).end())
    assert refusal.ended is not None
    assert refusal.ended.agrees
    assert refusal.ended.receipt.message.finish is Finish.REFUSED
    assert refusal.ended.receipt.message.code == refusal.code
    return refusal.code


@pytest.mark.parametrize("factor", [0, 2])
async def test_a_price_other_than_the_offers_is_refused_even_a_higher_one(
    autojump_clock: MockClock, factor: int
) -> None:
    async with open_market() as market:
        price = PriceSheet(output_nano_per_mtok=factor * market.model.price.output_nano_per_mtok)
        lease = {"price": price, "ceiling_nano": cost_nano(price, UNITS_MAX)}
        assert await code_of_refusal(market, **lease) is Code.PRICE_MISMATCH


async def test_a_lease_on_an_offer_that_we_never_made_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        refusal = refused(await (await market.open(offer_digest="0" * 64)).end())
        assert refusal.code is Code.PRICE_MISMATCH
        # Before a restart we may have worked for it: a receipt of nothing would undo that one.
        assert refusal.ended is None
        assert not await waiting(market)


async def test_a_lease_that_is_opened_late_buys_no_time_that_its_hold_does_not_cover(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        payload = encode(GenerationInput(max_tokens=50, prompt="hello", ignore_eos=True))
        request = seal(CLIENT, market.request(payload))
        now_ms = market.clock.now_ms()
        lease = market.lease(
            request, open_before_ms=now_ms + 30_000, deadline_at_ms=now_ms + 30_000
        )
        signed = seal(COORDINATOR, lease)
        await trio.sleep(30 + CLOCK_SKEW_MAX_MS / 1_000 - 3 * STEP_S)
        refusal = refused(await (await market.open_as(request, signed, payload)).end())
        assert refusal.code is Code.DEADLINE_EXCEEDED
        assert market.clock.now_ms() <= lease.deadline_at_ms + CLOCK_SKEW_MAX_MS


async def test_a_model_that_is_not_here_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        assert await code_of_refusal(market, model_digest="0" * 64) is Code.UNKNOWN_MODEL


async def test_a_model_whose_worker_is_down_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        market.worker.crash()
        assert await code_of_refusal(market) is Code.MODEL_UNAVAILABLE


async def test_a_draining_node_refuses(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        await market.server.drain(within_s=1)
        assert await code_of_refusal(market) is Code.DRAINING


async def test_a_node_without_isolation_refuses_every_remote_job(autojump_clock: MockClock) -> None:
    async with open_market(Setup(isolation=IsolationTier.NONE)) as market:
        assert await code_of_refusal(market) is Code.ISOLATION_UNAVAILABLE


async def refuse_request(market: Market, **changes: Any) -> Code:
    payload = encode(GenerationInput(max_tokens=2, prompt="x"))
    request = seal(CLIENT, market.request(payload, **changes))
    lease = seal(COORDINATOR, market.lease(request))
    return refused(await (await market.open_as(request, lease, payload)).end()).code


async def test_a_job_that_asks_for_stronger_isolation_is_refused(autojump_clock: MockClock) -> None:
    async with open_market(Setup(isolation=IsolationTier.LANDLOCK)) as market:
        wanted = Constraints(isolation=IsolationTier.BWRAP)
        assert await refuse_request(market, constraints=wanted) is Code.ISOLATION_UNAVAILABLE


async def test_a_job_that_forbids_keeping_data_is_refused_by_a_node_that_may(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(data_collection=DataCollection.ALLOW)) as market:
        wanted = Constraints(data_collection=DataCollection.DENY)
        assert await refuse_request(market, constraints=wanted) is Code.MODEL_UNAVAILABLE


async def test_a_task_that_the_model_does_not_do_is_refused(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        assert await refuse_request(market, task=Task.EMBEDDING) is Code.INVALID_INPUT


async def test_a_full_outbox_refuses_work_instead_of_losing_its_pay(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(receipts_max=1)) as market:
        assert isinstance(await (await market.open(1)).end(), Ended)
        assert await code_of_refusal(market) is Code.STORAGE_FULL
        assert await waiting(market) == 1


# Ends.


async def test_draining_lets_running_jobs_finish(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(20)
        await client.next()
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await market.server.drain(within_s=60)

            nursery.start_soon(drain)
            assert isinstance(await client.end(), Ended)
        assert trio.current_time() < 5


async def test_a_drain_cuts_what_does_not_finish_in_time_and_signs_for_it(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(50)
        while client.job.units.output_tokens < 3:
            await client.next()
        await market.server.drain(within_s=0.1)
        assert market.server.live_jobs == 0
        refusal = refused(await client.end())
        assert refusal.code is Code.DRAINING
        assert refusal.ended is not None
        assert refusal.ended.receipt.message.amount_nano > 0


async def test_a_client_that_never_countersigns_holds_nothing_for_long(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(1)
        assert isinstance(await client.end(), Ended)
        await trio.sleep(ACCEPTANCE_WITHIN_S + 1)
        assert client.channel.is_closed


async def test_garbage_in_place_of_a_job_is_told_what_it_is(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        for frame_type, body in (
            (FrameType.JOB_OPEN, b"garbage"),
            (FrameType.JOB_DATA, b"x"),
            (FrameType.JOB_ACCEPTANCE, b"x"),
            (FrameType.REPLY, b""),
        ):
            channel = await market.channel()
            channel.send_nowait(frame_type, body)
            frame = await channel.receive()
            assert frame.type is FrameType.JOB_ERROR
        assert isinstance(await (await market.open(1)).end(), Ended)


async def test_a_cancel_before_the_opening_is_harmless(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        channel = await market.channel()
        channel.send_nowait(FrameType.JOB_CANCEL)
        frame = await channel.receive()
        assert frame.type is FrameType.JOB_ERROR


async def test_the_disk_filling_up_mid_job_costs_nobody_the_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market() as market:
        apply = market.store.apply

        def full(changes: object) -> None:
            raise OutboxFullError("the disk under the outbox is full")

        client = await market.open(3)
        await client.next()
        monkeypatch.setattr(market.store, "apply", full)
        assert isinstance(await client.end(), Ended)
        assert await code_of_refusal(market) is Code.STORAGE_FULL
        monkeypatch.setattr(market.store, "apply", apply)
        await trio.sleep(2 * FULL_RETRY_S)
        assert await waiting(market) == 1
        assert isinstance(await (await market.open(1)).end(), Ended)


# Windows: how far a node goes ahead of its client's signature.


async def test_a_client_that_stops_signing_gets_two_windows_and_is_cut(
    autojump_clock: MockClock,
) -> None:
    async with open_market() as market:
        client = await market.open(50)
        client.signs = False
        started_at = trio.current_time()
        refusal = refused(await client.end())
        assert refusal.code is Code.UNSIGNED
        assert trio.current_time() - started_at >= SIGN_WITHIN_S
        assert refusal.ended is not None
        assert refusal.ended.agrees
        billed = refusal.ended.receipt.message
        assert billed.units.output_tokens == client.job.units.output_tokens == 32
        assert billed.finish is Finish.CANCELLED
        assert billed.countersigned is None
        assert billed.opening


async def test_output_that_waits_for_a_signature_holds_no_seat(autojump_clock: MockClock) -> None:
    async with open_market(Setup(slots=1, queue_max=0)) as market:
        client = await market.open(50)
        client.signs = False
        await trio.sleep(60 * STEP_S)
        assert market.server.live_jobs == 1
        assert isinstance(await (await market.open(5)).end(), Ended)
        assert refused(await client.end()).code is Code.UNSIGNED


async def test_a_client_that_signs_late_gets_the_whole_answer(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(50)
        await trio.sleep(SIGN_WITHIN_S / 2)
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert ended.receipt.message.units.output_tokens == 50


async def test_the_receipt_carries_what_its_client_has_signed(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        client = await market.open(50, prompt="hello")
        ended = await client.end()
        assert isinstance(ended, Ended)
        proof = read_proof(ended.receipt.message, market.leases[-1])
        assert proof.is_opened
        assert proof.output_tokens == 48
        assert proof.input_tokens_min <= 5 <= proof.input_tokens_max


@pytest.mark.parametrize(
    "frame",
    [
        (FrameType.JOB_DATA, b"the payload again"),
        (FrameType.JOB_ERROR, b"nonsense"),
        (FrameType.JOB_CHUNK, b"nonsense"),
        (FrameType.JOB_CANCEL, b"with a body"),
        (FrameType.ERROR, encode(ErrorBody(Code.INTERNAL, "the client gives up"))),
        (FrameType.JOB_COUNTERSIGN, bytes(72)),
    ],
)
async def test_breaking_the_protocol_is_a_cancel_by_another_name(
    autojump_clock: MockClock, frame: tuple[FrameType, bytes]
) -> None:
    # Before the first token: the prefill is not free.
    async with open_market() as market:
        client = await market.open(50)
        await client.next()
        client.channel.send_nowait(*frame)
        await trio.sleep(5 * STEP_S)
        assert market.server.live_jobs == len(market.worker.live) == 0
        (stored,) = market.store.load()
        billed = open_envelope(stored.receipt, Receipt).message
        assert billed.finish is Finish.CANCELLED
        assert billed.amount_nano > 0


async def test_the_payload_again_is_not_taken_before_the_job_is_accepted(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1)) as market:
        running, queued = await market.open(20), await market.open(5)
        queued.channel.send_nowait(FrameType.JOB_DATA, b"once more")
        assert refused(await queued.end()).code is Code.UNEXPECTED_FRAME
        assert isinstance(await running.end(), Ended)


async def open_batch(market: Market, *, is_full_price: bool = False) -> Client:
    payload = encode(GenerationInput(max_tokens=5, prompt="hello"))
    request = seal(CLIENT, market.request(payload, is_batch=True))
    price = market.model.offer().asked_price(is_batch=not is_full_price)
    return await market.open_as(
        request, seal(COORDINATOR, market.lease(request, price=price)), payload
    )


async def test_a_batch_job_that_has_delivered_nothing_gives_way_for_free(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1, queue_max=2)) as market:
        batch = await open_batch(market)
        live = await market.open(5)
        refusal = refused(await batch.end())
        assert refusal.code is Code.BUSY
        assert refusal.ended is not None
        assert refusal.ended.receipt.message.amount_nano == 0
        ended = await live.end()
        assert isinstance(ended, Ended)
        assert ended.receipt.message.queued_ms < 1_000 * STEP_S


async def test_a_batch_text_gives_way_within_a_step_and_is_paid_for_what_it_delivered(
    autojump_clock: MockClock,
) -> None:
    async with open_market(Setup(slots=1, queue_max=0)) as market:
        batch = await open_batch(market)
        await trio.sleep(3.5 * STEP_S)
        live = await market.open(5)
        gone = refused(await batch.end())
        assert gone.code is Code.BUSY
        assert gone.ended is not None
        assert gone.ended.agrees
        billed = gone.ended.receipt.message
        assert 0 < billed.units.output_tokens < 5
        half = market.model.offer().asked_price(is_batch=True)
        assert billed.amount_nano == cost_nano(half, billed.units)
        ended = await live.end()
        assert isinstance(ended, Ended)
        assert ended.receipt.message.queued_ms < 1_000 * STEP_S


async def test_a_batch_job_pays_the_batch_price_and_no_other(autojump_clock: MockClock) -> None:
    async with open_market() as market:
        ended = await (await open_batch(market)).end()
        assert isinstance(ended, Ended)
        half = market.model.offer().asked_price(is_batch=True)
        assert ended.receipt.message.amount_nano == cost_nano(half, ended.receipt.message.units)
        dear = refused(await (await open_batch(market, is_full_price=True)).end())
        assert dear.code is Code.PRICE_MISMATCH


async def test_a_text_that_is_only_tokenized_costs_nothing(autojump_clock: MockClock) -> None:
    data = encode(TokensOutput(tuple(range(40_000)), (b"word",) * 40_000))
    async with open_market() as market:
        client = await market.open(1)
        (job_id,) = market.worker.live
        market.worker.live.clear()
        answer = (Started(job_id, Units()), Produced(job_id, (), "", data))
        market.worker.book.deliver((*answer, Completed(job_id, "complete", Units())))
        ended = await client.end()
        assert isinstance(ended, Ended)
        assert ended.agrees
        billed = ended.receipt.message
        assert (billed.units, billed.amount_nano) == (Units(), 0)
        assert billed.finish is Finish.COMPLETE
        # In pieces that fit a frame.
        pieces = [event.data for event in client.events if isinstance(event, Chunk)]
        assert len(pieces) > 1
        assert b"".join(pieces) == data

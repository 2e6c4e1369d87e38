"""D2, E2 and the protocol's rows: attacks on a node's work, and on what it writes down."""

import re
from collections import Counter
from contextlib import suppress

import trio

from protocol.client_session import Admitted, Ended, Refused
from protocol.errors import CapaError, RemoteProtocolError
from protocol.framing import FrameType
from protocol.generation import GenerationInput
from protocol.keys import SigningKey
from protocol.limits import KIB, MIB
from protocol.net.errors import NetError
from protocol.payload import EmbeddingInput
from protocol.pricing import Units
from sim.chaos.model import NAME as RECITAL
from sim.siege.attack import Attack, AttackResult
from sim.siege.ground import Ground
from sim.siege.peer import Peer, Wish, open_peer
from sim.siege.real_node import EMBEDDING, cpu_s, real_node, worker_pids

_ASKS = 4
_BOMBS = 6
_BOMB_TEXTS = 250
_BOMB_TEXT_CHARS = 32_768
_BOMB_WITHIN_S = 20.0
# It is said to be as short as the model's context.
_UNITS_CLAIMED = 200
_REFUSED_CPU_S_MAX = 2.0

_LONG_PROMPTS = 4
_LONG_PROMPT_BYTES = 3 * MIB

_PREFILL_BYTES = 800
_CUT_DEADLINE_S = 3.0
# A lone receipt is paid fifteen seconds after its deadline.
_LONE_WITHIN_S = 30.0

# So many paying accounts make a record of the node's own, and with it seats.
_WITNESSES = 3
_UPLOADING_ACCOUNTS = 4
_UPLOADS_PER_ACCOUNT = 6
# With what is around it, this is just what a payload may have.
_UPLOAD_BYTES = 8 * MIB - KIB
_TRICKLE_BYTES = 16 * KIB
# A little more than the slowest that a node waits for.
_TRICKLE_BYTES_PER_S = 136 * KIB
_UPLOADED_WITHIN_S = 12.0

_PRIVATE_PROMPT = "forbidden diagnosis 7391"


async def embedding_bomb(ground: Ground) -> AttackResult:
    """Inputs of eight megabytes that take gigabytes while they are tokenized."""
    node = await real_node(ground)
    user, attacker = await ground.open_gateway_account(), await ground.books.open_own()

    async def embed_honestly() -> int:
        body = {"model": EMBEDDING, "input": "a short text"}
        return [(await user.post("/v1/embeddings", body)).status for _ in range(_ASKS)].count(200)

    before, workers = await embed_honestly(), worker_pids(node)
    bomb = EmbeddingInput(("!" * _BOMB_TEXT_CHARS,) * _BOMB_TEXTS)
    wish = Wish(EMBEDDING, bomb, units=Units(_UNITS_CLAIMED))
    spent_s, codes = cpu_s(node), Counter[str]()
    async with open_peer(ground.endpoint, attacker) as peer:
        for _ in range(_BOMBS):
            codes[await _meets(peer, wish)] += 1
    # Workers that have ended take their times with them; then the attack has succeeded anyway.
    each_s = (cpu_s(node) - spent_s) / _BOMBS
    under, lost = await embed_honestly(), len(workers - worker_pids(node))
    return AttackResult(
        held=before == under == _ASKS and not lost and each_s <= _REFUSED_CPU_S_MAX,
        honest_before=f"{before} of {_ASKS} texts embedded",
        honest_under=f"{under} of {_ASKS}, {lost} workers lost; {_BOMBS} bombs met "
        f"{', '.join(codes)} for {each_s:.2f} s of CPU each",
    )


async def _meets(peer: Peer, wish: Wish) -> str:
    """The code of the refusal that ends a job."""
    try:
        with trio.fail_after(_BOMB_WITHIN_S):
            async with peer.opened_job(wish) as opened:
                while True:
                    arrived = await opened.channel.receive()
                    event = opened.job.receive(arrived.type, arrived.body)
                    if isinstance(event, Refused):
                        return event.code.value
                    if isinstance(event, Ended):
                        return "an answer"
    except RemoteProtocolError as error:
        return error.code.value
    except NetError as error:
        return type(error).__name__


async def free_work(ground: Ground) -> AttackResult:
    """Prompts far beyond the context: refused and free, and they must cost the node little."""
    node = await real_node(ground)
    user, attacker = await ground.open_gateway_account(), await ground.books.open_own()
    before = await user.ask_honestly(RECITAL, _ASKS)
    refused, spent_s = 0, cpu_s(node)
    async with open_peer(ground.endpoint, attacker) as peer:
        for letter in ("a", "\n", "中", "!")[:_LONG_PROMPTS]:
            prompt = letter * (_LONG_PROMPT_BYTES // len(letter.encode()))
            refused += not await peer.tries_to_buy(RECITAL, GenerationInput(1, prompt=prompt))
        each_s = (cpu_s(node) - spent_s) / _LONG_PROMPTS
        under = await user.ask_honestly(RECITAL, _ASKS)
    return AttackResult(
        held=before.is_whole
        and under.is_whole
        and refused == _LONG_PROMPTS
        and each_s <= _REFUSED_CPU_S_MAX,
        honest_before=str(before),
        honest_under=f"{under}; {refused} refused prompts cost {each_s:.2f} s of CPU each",
    )


async def garbage_for_cancel(ground: Ground) -> AttackResult:
    """A client sends rubbish when the node has begun, to have the prefill for nothing."""
    node = await real_node(ground)
    paid = {}
    for name, frame in {"cancel": (FrameType.JOB_CANCEL, b""), "rubbish": _RUBBISH}.items():
        key = await ground.books.open_own()
        owned_nano = ground.books.owned_nano(key.peer_id)
        async with open_peer(ground.endpoint, key) as peer:
            await _open_and_send(peer, *frame)
        paid[name] = (key, owned_nano)
    nano = {}
    for name, (key, owned_nano) in paid.items():
        await ground.books.wait_no_holds(key.peer_id, within_s=_LONE_WITHIN_S)
        nano[name] = owned_nano - ground.books.owned_nano(key.peer_id)
    return AttackResult(
        held=0 < nano["cancel"] <= nano["rubbish"] and node.peer_id != "",
        honest_before=f"the node gets {nano['cancel']:,} nano from a client that cancels and goes",
        honest_under=f"{nano['rubbish']:,} nano from one that sends rubbish",
    )


_RUBBISH = (FrameType.JOB_CHUNK, b"\xc1 rubbish")


async def _open_and_send(peer: Peer, frame_type: FrameType, body: bytes) -> None:
    """Open a job with a long prompt, and send one frame as soon as it is accepted."""
    job_input = GenerationInput(64, prompt="x" * _PREFILL_BYTES, ignore_eos=True)
    wish = Wish(RECITAL, job_input, deadline_s=_CUT_DEADLINE_S)
    async with peer.opened_job(wish) as opened:
        while True:
            arrived = await opened.channel.receive()
            if isinstance(opened.job.receive(arrived.type, arrived.body), Admitted):
                break
        opened.channel.send_nowait(frame_type, body)
        await trio.sleep(0.3)


async def trickled_uploads(ground: Ground) -> AttackResult:
    """Payloads of the largest size arrive as slowly as a node allows."""
    users = [await ground.open_gateway_account() for _ in range(_WITNESSES)]
    for user in users:
        before = await user.ask_honestly(RECITAL, _ASKS)
    attackers = [await ground.books.open_own() for _ in range(_UPLOADING_ACCOUNTS)]
    job_input = GenerationInput(1, prompt="x" * _UPLOAD_BYTES)
    wish = Wish(RECITAL, job_input, units=Units(100, 1))
    uploads = 0

    async def upload(peer: Peer) -> None:
        nonlocal uploads
        with suppress(CapaError):
            async with peer.opened_job(wish, is_whole=False) as opened:
                uploads += 1
                while True:
                    await opened.channel.send(FrameType.JOB_DATA, bytes(_TRICKLE_BYTES))
                    await trio.sleep(_TRICKLE_BYTES / _TRICKLE_BYTES_PER_S)

    async def attack(attacker: SigningKey) -> None:
        async with open_peer(ground.endpoint, attacker) as peer, trio.open_nursery() as uploading:
            for _ in range(_UPLOADS_PER_ACCOUNT):
                uploading.start_soon(upload, peer)

    async with trio.open_nursery() as attacking:
        for attacker in attackers:
            attacking.start_soon(attack, attacker)
        await trio.sleep(2.0)
        under = await users[0].ask_honestly(RECITAL, _ASKS, within_s=_UPLOADED_WITHIN_S)
        attacking.cancel_scope.cancel()
    return AttackResult(
        held=before.is_whole and under.is_whole and uploads > 0,
        honest_before=str(before),
        honest_under=f"{under}, beside {uploads} trickled uploads of 8 MiB of "
        f"{_UPLOADING_ACCOUNTS} accounts",
    )


async def prompt_in_log(ground: Ground) -> AttackResult:
    """A prompt that the model's own template quotes when it refuses it."""
    node = await real_node(ground)
    user = await ground.open_gateway_account()

    async def chat(content: str) -> int:
        messages = [{"role": "user", "content": content}]
        body = {"model": RECITAL, "messages": messages, "max_tokens": 8}
        return (await user.post("/v1/chat/completions", body)).status

    def lines() -> int:
        logs = [path.read_text(errors="replace") for path in ground.folder.glob("logs/*.log")]
        return sum(len(re.findall(re.escape(_PRIVATE_PROMPT), text)) for text in logs)

    status_before, before = await chat("hello"), lines()
    status_under = await chat(_PRIVATE_PROMPT)
    await trio.sleep(0.5)
    under = lines()
    return AttackResult(
        held=status_before == 200 and status_under not in (0, 200) and before == under == 0,
        honest_before=f"{before} lines of all logs tell the prompt of an answer (status "
        f"{status_before})",
        honest_under=f"{under} lines tell a prompt that {node.plan.name}'s template refused "
        f"(status {status_under})",
    )


ATTACKS = (
    Attack("embedding-bomb", "D2", "kill a worker by its input", embedding_bomb, needs_node=True),
    Attack("free-work", "D2", "have costly prompts refused", free_work, needs_node=True),
    Attack("prompt-in-log", "E2", "have a prompt quoted in a log", prompt_in_log, needs_node=True),
    Attack(
        "garbage-for-cancel",
        "P",
        "send rubbish for a cancel",
        garbage_for_cancel,
        needs_node=True,
    ),
    Attack(
        "trickled-uploads", "P", "send large payloads slowly", trickled_uploads, needs_node=True
    ),
)

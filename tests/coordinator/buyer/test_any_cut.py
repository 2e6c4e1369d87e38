"""An answer that is cut anywhere, several times, however its tokens are cut into chunks, is the
unbroken one: text, tokens and scores.

The nodes speak the real protocol and decode with the engine's own `AnswerText`; only the model is
left out, as its tokens are planned. Tokens are bytes: each may be a part of a character.
"""

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from capanode.engines.detokenize import AnswerText, TokenBytes
from capanode.engines.tokenizer import load_tokenizer
from coordinator.buyer.spec import Continuation
from protocol.codec import decode
from protocol.endings import Finish
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.net.channels import Channel
from protocol.net.errors import NetError
from protocol.node_session import NodeJob
from protocol.payload import Chunk
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.capanode.engines.tiny_models import write_tokenizer
from tests.coordinator.small_market import (
    INPUT_UNITS,
    PRICE,
    Script,
    ScriptedNode,
    _receive_opened,
    open_small_market,
    read_countersignatures,
)

SEEDS = range(24)
# Of a purchase whose nodes all fail after a few tokens, the fifth attempt has to be the last.
DEATHS_MAX = 4
ANSWERS = (
    ("Größe: 3 € – naïve 🙂🙃 текст", ()),
    ("one two three\n\nHuman: and what follows", ("\n\nHuman:", "\nStop")),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>', ("</tool",)),
    ('{"name": "Åsa", "tags": ["a\\n", "b"], "n": -1.5e3}', ()),
    ("ends with what may begin a stop string: ST", ("STOP",)),
    ("a STO", ("STOP", "O.")),
    ("aab aab aabb", ("aabb", "bb")),
    ("", ()),
)


@dataclass
class Play:
    """What the nodes of one market do: one death after another, then the answer."""

    token_bytes: TokenBytes
    tokens: tuple[int, ...]
    deaths: list[tuple[int, str]]
    rng: random.Random
    has_scores: bool

    def chunks(self, job_input: GenerationInput) -> tuple[list[Chunk], Finish]:
        """What the engine would produce of this input, token by token."""
        answer = AnswerText(self.token_bytes, job_input.stop)
        for token in job_input.prefix_tokens:
            answer.push(token)
        assert job_input.prefix_tokens == self.tokens[: len(job_input.prefix_tokens)]
        if answer.is_stopped:
            return [], Finish.STOP
        chunks: list[Chunk] = []
        for token in self.tokens[len(job_input.prefix_tokens) :]:
            text = answer.push(token)
            is_last = len(chunks) + 1 == job_input.max_tokens
            if is_last:
                text += answer.finish()
            data = b"[%d]" % token if self.has_scores else b""
            chunks.append(Chunk((token,), text, data))
            if answer.is_stopped or is_last:
                return chunks, Finish.STOP if answer.is_stopped else Finish.LENGTH
        held_back = answer.finish()
        return [*chunks, *([Chunk((), held_back)] if held_back else [])], Finish.STOP

    def cut(self, chunks: list[Chunk]) -> list[Chunk]:
        """The same, several tokens in one chunk here and there. What is released at the end comes
        without a token, as from the engine."""
        joined: list[Chunk] = []
        last = [chunk for chunk in chunks if not chunk.token_ids]
        chunks = chunks[: len(chunks) - len(last)]
        while chunks:
            count = self.rng.choice((1, 1, 2, 5))
            batch, chunks = chunks[:count], chunks[count:]
            token_ids = tuple(token for chunk in batch for token in chunk.token_ids)
            text, data = "".join(c.text for c in batch), b"".join(c.data for c in batch)
            joined.append(Chunk(token_ids, text, data))
        return joined + last

    async def serve(self, node: ScriptedNode, channel: Channel) -> None:
        job = NodeJob(node.key)
        opened = await _receive_opened(job, channel)
        assert opened is not None
        job_input = decode(GenerationInput, opened.payload)
        node.prefixes[opened.lease.message.lease_id] = len(job_input.prefix_tokens)
        chunks, finish = self.chunks(job_input)
        after, how = self.deaths.pop(0) if self.deaths else (len(chunks), "lives")
        sent = self.cut(chunks[:after])
        channel.send_nowait(*node.admit(job))
        with suppress(NetError):
            for chunk in sent:
                for frame in job.output(chunk):
                    channel.send_nowait(*frame)
                await trio.sleep(0.001)
                read_countersignatures(job, channel)
            if how == "lives":
                channel.send_nowait(*job.receipt(node.sign(job, tuple(sent), finish)))
            elif how == "crashes":
                receipt = node.sign(job, tuple(sent), Finish.FAILED, "worker_crashed")
                channel.send_nowait(*job.error(Code.WORKER_CRASHED, "crashed", receipt=receipt))
            elif how == "hangs":
                await trio.sleep(60)
            await trio.sleep(0.1)


def unbroken(play: Play, job_input: GenerationInput) -> tuple[str, list[int], bytes]:
    chunks, _ = play.chunks(job_input)
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    return "".join(c.text for c in chunks), tokens, b"".join(c.data for c in chunks)


@pytest.fixture(scope="module")
def token_bytes(tmp_path_factory: pytest.TempPathFactory) -> TokenBytes:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return TokenBytes(load_tokenizer(folder))


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_answer_that_is_cut_anywhere_is_the_unbroken_one(
    seed: int, token_bytes: TokenBytes, autojump_clock: MockClock
) -> None:
    rng = random.Random(seed)
    text, stop = rng.choice(ANSWERS)
    tokens = tuple(text.encode())
    max_tokens = rng.choice((len(tokens) + 10, max(1, len(tokens) - rng.randrange(4))))
    ways = [rng.choice(("vanishes", "crashes", "hangs")) for _ in range(rng.randint(1, DEATHS_MAX))]
    # Often after all that there is, but before the receipt.
    step = max(1, 2 * len(tokens) // len(ways))
    deaths = [(rng.choice((rng.randrange(step), len(tokens) + 9)), how) for how in ways]
    play = Play(token_bytes, tokens, deaths, rng, has_scores=rng.random() < 0.3)
    job_input = GenerationInput(max_tokens=max_tokens, prompt="Say it", stop=stop, temperature=0.0)

    def take_over(nodes: list[ScriptedNode]) -> None:
        for node in nodes:
            node.serve_job = partial(play.serve, node)  # type: ignore[method-assign]

    scripts = [Script.ANSWER] * (DEATHS_MAX + 1)
    async with open_small_market(*scripts, seed=seed, adjust=take_over) as market:
        spec = market.spec(max_tokens, continuation=Continuation.CONTINUE)
        chunks: list[Chunk] = []
        async with market.client.buy(replace(spec, job_input=job_input), market.buyer) as job:
            async for chunk in job:
                chunks.append(chunk)  # noqa: PERF401 - kept if the purchase fails
        _, result = job.ended()
        got = "".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids]
        assert (*got, b"".join(c.data for c in chunks)) == unbroken(play, job_input)
        assert result.units == Units(INPUT_UNITS.input_tokens, len(got[1]))
        done = 0
        for part in result.parts:
            units = Units(INPUT_UNITS.input_tokens + done, part.units.output_tokens)
            assert part.tokens_used == part.units.output_tokens, "each token is paid once"
            assert part.amount_nano == charge_nano(PRICE, units, Finish.CANCELLED)
            done += part.tokens_used
        await trio.sleep(200)
        market.assert_books_are_closed()

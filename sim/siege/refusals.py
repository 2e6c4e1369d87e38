"""F2: a node that ends every job by a word that blames others."""

import trio

from protocol.codec import encode
from protocol.errors import Code
from protocol.framing import FrameType
from protocol.job_frames import JobErrorBody
from protocol.pricing import PriceSheet
from sim.siege.attack import Attack, AttackResult
from sim.siege.ground import Ground
from sim.siege.staged_job import StagedJob, answer
from sim.siege.staged_node import Play, StagedNode, staged

# At half the price of the honest ones, so that it is chosen wherever it can be.
_CHEAP = PriceSheet(input_nano_per_mtok=500_000_000, output_nano_per_mtok=2_000_000_000)
_CODES = (Code.INVALID_INPUT, Code.PROMPT_TOO_LONG, Code.OUT_OF_FUNDS, Code.CANCELLED)
_ASKS = 10


async def blaming_refusals(ground: Ground) -> AttackResult:
    """The cheapest node says of every job that its input is wrong, or that its client is."""
    user = await ground.open_gateway_account()
    answered = 0
    before = ""
    for code in _CODES:
        model = f"f2-{code}"
        honest = [StagedNode(model, answer) for _ in range(2)]
        async with staged(ground.endpoint, *honest):
            before = str(await user.ask_honestly(model, _ASKS))
            async with staged(ground.endpoint, StagedNode(model, _refuse(code), price=_CHEAP)):
                answered += (await user.ask_honestly(model, _ASKS)).answered
    return AttackResult(
        held=answered == len(_CODES) * _ASKS,
        honest_before=before,
        honest_under=f"{answered} of {len(_CODES) * _ASKS} answered beside a node that says "
        f"{', '.join(_CODES)}",
    )


def _refuse(code: Code) -> Play:
    async def refuse(job: StagedJob) -> None:
        body = JobErrorBody(code, "no")
        job.channel.send_nowait(FrameType.JOB_ERROR, encode(body))
        await trio.sleep(1)

    return refuse


ATTACKS = (
    Attack("blaming-refusals", "F2", "refuse every job in another's name", blaming_refusals),
)

"""One run: a market of real processes that is asked all the time, and is let alone otherwise."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from capanode.models.store import ModelStore
from sim.chaos.load import AnswerEnd
from sim.chaos.market import open_recital_market
from sim.chaos.model import add_recital
from sim.network import open_network
from sim.soak.samples import Sample, take_samples

NODES = 2
# Caches fill (SQLite keeps 2 MB of pages a connection), allocators find their size, and connections
# their number.
WARM_UP_SHARE = 0.5
_SAMPLES = 120
_SAMPLE_EVERY_S_MIN = 1.0
_SAY_EVERY_S = 60.0
_METRICS_WITHIN_S = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """`folder` takes everything that the run makes; clients ask for `lasts_s`, warm-up included."""

    folder: Path
    seed: int
    lasts_s: float
    nodes: int = NODES


@dataclass(frozen=True, slots=True)
class SoakResult:
    """`samples` are of the time after the warm-up, by program."""

    lasts_s: float
    questions: int
    answered: int
    samples: Mapping[str, list[Sample]]


async def run_soak(options: SoakOptions, say: Say) -> SoakResult:
    """Raises ProcessFailed if a program ends by itself."""
    store = options.folder / "models"
    add_recital(ModelStore(store))
    async with open_network(options.folder, store) as network:
        load = await open_recital_market(network, nodes=options.nodes, seed=options.seed)
        say(f"{options.nodes} nodes serve; asking for {options.lasts_s / 60:g} minutes")
        samples: dict[str, list[Sample]] = {}
        warm_s = WARM_UP_SHARE * options.lasts_s
        every_s = max(_SAMPLE_EVERY_S_MIN, (options.lasts_s - warm_s) / _SAMPLES)
        async with (
            httpx.AsyncClient(
                base_url=network.endpoint.http, timeout=_METRICS_WITHIN_S, trust_env=False
            ) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(load.run)
            nursery.start_soon(_tell_time, options.lasts_s, say)
            began_s = time.monotonic()
            await trio.sleep(warm_s)
            while (at_s := time.monotonic() - began_s) < options.lasts_s:
                for name, sample in (await take_samples(network, client, at_s=at_s)).items():
                    samples.setdefault(name, []).append(sample)
                await trio.sleep(every_s)
            load.stop()
    answered = sum(question.end is AnswerEnd.ANSWERED for question in load.questions)
    return SoakResult(options.lasts_s, len(load.questions), answered, samples)


async def _tell_time(lasts_s: float, say: Say) -> None:
    for passed in range(1, int(lasts_s // _SAY_EVERY_S) + 1):
        await trio.sleep(_SAY_EVERY_S)
        say(f"  {passed} of {lasts_s / _SAY_EVERY_S:g} minutes")

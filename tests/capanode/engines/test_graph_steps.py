"""Steps that run ahead of the host, on a CPU: nothing is captured, and the same steps run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines import causal_lm
from capanode.engines.causal_lm import CausalLM
from capanode.engines.device_draw import draw
from capanode.engines.graph_steps import GraphSteps
from capanode.engines.noise import RowNoise
from capanode.engines.sampling import SamplingParameters, choose_tokens
from capanode.engines.varlen_plain import plain_varlen
from protocol.generation import GenerationInput
from tests.capanode.engines.test_paged_cache import CONTEXT, make_paged, text
from tests.capanode.engines.tiny_models import load, run, write_llama

Launches = list[int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


def make_ahead(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, pages: int = 13
) -> tuple[CausalLM, Launches]:
    """An engine that decodes as on a GPU, and the rows of each step that it has started."""
    launches: Launches = []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):  # As a real capture does before the first token.
            step()

        def launch() -> None:
            launches.append(1)
            step()

        return launch

    def steps(model: Any, cache: Any) -> GraphSteps:
        return GraphSteps(model, cache, plain_varlen, capture=capture)

    with monkeypatch.context() as patched:
        patched.setattr(causal_lm, "_steps_of", steps)
        return make_paged(monkeypatch, folder, pages=pages), launches


def asked(number: int, **options: Any) -> GenerationInput:
    sampling = {"temperature": 0.9 * (number % 2), "seed": number}
    plain: dict[str, Any] = {"max_tokens": 5 + 13 * number, "ignore_eos": True, **sampling}
    tokens = text(20 + 90 * number, seed=number)
    return GenerationInput(prompt_tokens=tokens, **{**plain, **options})


def both(
    monkeypatch: pytest.MonkeyPatch, folder: Path, inputs: list[GenerationInput], **options: Any
) -> Launches:
    """The answers of an engine that runs ahead are those of one that does not; jobs come one after
    another. Returns what was started."""
    ahead, launches = make_ahead(monkeypatch, folder, **options)
    found = []
    for engine in (load(folder), ahead):
        pending = list(enumerate(inputs))[::-1]

        def arrive(
            step: int, engine: Any = engine, pending: list[tuple[int, Any]] = pending
        ) -> None:
            if pending and step % 4 == 1:
                number, job_input = pending.pop()
                engine.submit(str(number), job_input)

        arrive(1)
        transcript = run(engine, after_step=arrive)
        assert not pending
        found.append([transcript.tokens(str(number)) for number in range(len(inputs))])
    assert found[1] == found[0]
    assert [len(tokens) for tokens in found[0]] == [job.max_tokens for job in inputs]
    return launches


def test_jobs_that_come_and_go_are_answered_as_without_running_ahead(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert both(monkeypatch, folder, [asked(number) for number in range(5)])


def test_a_job_that_needs_the_host_beside_others_stops_them_from_running_ahead(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    inputs = [asked(3), asked(2, top_p=0.9, temperature=1.0), asked(1, logprobs=0), asked(4)]
    assert both(monkeypatch, folder, inputs)


def test_jobs_that_outgrow_the_pool_come_out_the_same(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    inputs = [asked(number, max_tokens=300) for number in range(1, 4)]
    assert both(monkeypatch, folder, inputs, pages=5)


def test_steps_run_ahead_and_the_surplus_of_an_answer_is_dropped(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    engine, launches = make_ahead(monkeypatch, folder)
    stopped = load(folder)
    job_input = asked(2, max_tokens=40)
    stopped.submit("job", job_input)
    tokens = run(stopped).tokens("job")
    engine.submit("job", asked(2, max_tokens=40, stop_token_ids=(tokens[9],)))
    assert run(engine).tokens("job") == tokens[: tokens.index(tokens[9])]
    # The first token is of the prompt; the step behind the last one was in the air.
    assert len(launches) == tokens.index(tokens[9]) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_that_the_host_draws(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn((64, 4096), generator=generator) * 4).to(dtype)
    wanted = [SamplingParameters(0.2 * (row % 6), 1.0, 0, seed=row) for row in range(64)]
    indices = list(range(64))
    noise = RowNoise([row.seed for row in wanted], indices, logits.device)
    temperatures = torch.tensor([[row.temperature] for row in wanted])
    drawn = draw(logits, None, temperatures, noise).tolist()
    assert drawn == choose_tokens(logits, wanted, indices)

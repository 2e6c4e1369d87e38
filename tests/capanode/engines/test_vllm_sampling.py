"""Every setting of a job in vLLM's words."""

from typing import Any

import pytest

from capanode.engines.base import EngineRefusal
from capanode.engines.generation import Generation
from capanode.engines.generation_reader import GenerationReader
from capanode.engines.vllm_sampling import sampling_fields
from protocol.errors import Code
from protocol.generation import SEED_MAX, GenerationInput, TokenBias
from tests.capanode.engines.tiny_models import END, VOCAB
from tests.capanode.engines.vllm_makers import write_model


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> GenerationReader:
    return GenerationReader(
        write_model(tmp_path_factory.mktemp("model")),
        {"eos_token_id": END},
        context_tokens=128,
        vocab=VOCAB,
        chooses=False,
    )


def job_of(
    reader: GenerationReader, max_tokens: int = 10, **given: Any
) -> tuple[Generation, GenerationInput]:
    job_input = GenerationInput(max_tokens=max_tokens, prompt="ab", **given)
    return reader.job("job", reader.read(job_input)), job_input


def fields(reader: GenerationReader, **given: Any) -> dict[str, Any]:
    job, job_input = job_of(reader, **given)
    return dict(sampling_fields(job, job_input, VOCAB))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1.7),
        ("top_p", 0.3),
        ("top_k", 5),
        ("min_p", 0.2),
        ("presence_penalty", -1.5),
        ("frequency_penalty", 0.5),
        ("repetition_penalty", 1.2),
        ("min_tokens", 4),
        ("seed", 7),
        ("seed", SEED_MAX),
        ("logprobs", 3),
        ("logprobs", 0),
        ("prompt_logprobs", 2),
    ],
)
def test_a_setting_of_the_same_meaning_keeps_its_value(
    reader: GenerationReader, name: str, value: float
) -> None:
    assert fields(reader, **{name: value})[name] == value
    if name != "seed":
        assert fields(reader)[name] != value


def test_the_defaults_ask_for_nothing_special(reader: GenerationReader) -> None:
    made = fields(reader)
    assert (made["temperature"], made["top_p"], made["top_k"], made["min_p"]) == (1.0, 1.0, 0, 0.0)
    assert (made["logit_bias"], made["logprobs"], made["prompt_logprobs"]) == (None, None, None)
    assert (made["max_tokens"], made["min_tokens"], made["seed"]) == (10, 0, 0)


def test_what_ends_an_answer_is_one_list(reader: GenerationReader) -> None:
    """vLLM has no end-of-text token of its own: ours are all that it knows."""
    assert fields(reader)["stop_token_ids"] == [END]
    assert fields(reader, stop_token_ids=(98, 97))["stop_token_ids"] == [97, 98, END]
    assert fields(reader, ignore_eos=True)["stop_token_ids"] == []
    assert fields(reader, ignore_eos=True, stop_token_ids=(97,))["stop_token_ids"] == [97]
    assert fields(reader)["ignore_eos"] is True


def test_stop_strings_formats_and_text_are_not_given_away(reader: GenerationReader) -> None:
    made = fields(reader, stop=("x",), includes_stop=True)
    assert not {"stop", "include_stop_str_in_output", "structured_outputs", "n"} & made.keys()


def test_an_answer_is_bounded_by_the_context_too(reader: GenerationReader) -> None:
    assert fields(reader, max_tokens=1_000)["max_tokens"] == 126
    assert fields(reader, max_tokens=5, min_tokens=9)["min_tokens"] == 5


def test_biases_of_a_token_add_up_and_of_no_token_count_for_nothing(
    reader: GenerationReader,
) -> None:
    biases = (TokenBias(3, 1.5), TokenBias(3, 1.0), TokenBias(9, -100.0), TokenBias(VOCAB, 5.0))
    assert fields(reader, logit_bias=biases)["logit_bias"] == {3: 2.5, 9: -100.0}
    assert fields(reader, logit_bias=(TokenBias(VOCAB, 5.0),))["logit_bias"] is None


def test_an_answer_that_goes_on_has_what_is_left_of_it(reader: GenerationReader) -> None:
    made = fields(reader, prefix_tokens=(100, 101), min_tokens=5, seed=3)
    assert (made["max_tokens"], made["min_tokens"]) == (10, 3)
    # Its noise is not that of the first tokens again, and the same wherever it goes on from there.
    assert 0 <= made["seed"] <= SEED_MAX
    assert made["seed"] != 3
    assert made["seed"] == fields(reader, prefix_tokens=(7, 8), seed=3)["seed"]
    assert made["seed"] != fields(reader, prefix_tokens=(7, 8, 9), seed=3)["seed"]
    assert fields(reader, prefix_tokens=(100, 101), min_tokens=1)["min_tokens"] == 0


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_an_answer_with_penalties_goes_on_at_another_node(
    reader: GenerationReader, penalty: str
) -> None:
    given: dict[str, Any] = {"prefix_tokens": (100,), penalty: 0.5}
    job, job_input = job_of(reader, **given)
    with pytest.raises(EngineRefusal) as refused:
        sampling_fields(job, job_input, VOCAB)
    assert refused.value.code is Code.MODEL_UNAVAILABLE
    # Of the whole text, which vLLM sees.
    assert fields(reader, prefix_tokens=(100,), repetition_penalty=1.5)["repetition_penalty"] == 1.5

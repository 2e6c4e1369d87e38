import pytest

from capanode.engine_choice import choose_engines
from capanode.errors import NoEngineError
from capanode.settings import EngineWish
from protocol.messages import Task
from tests.capanode.test_placement import plan


@pytest.mark.parametrize(
    ("architecture", "wish", "has_gpu", "has_vllm", "with_vllm"),
    [
        ("LlamaForCausalLM", None, True, True, False),
        ("LlamaForCausalLM", EngineWish.VLLM, True, True, True),
        ("LlamaForCausalLM", EngineWish.OWN, True, True, False),
        ("GraniteForCausalLM", None, True, True, True),
        ("GraniteForCausalLM", EngineWish.OWN, True, True, False),
        ("GraniteForCausalLM", None, True, False, False),
        ("GraniteForCausalLM", None, False, True, False),
        ("MixtralForCausalLM", None, True, True, True),
    ],
)
def test_vllm_runs_what_its_owner_wants_and_what_ours_does_not(
    architecture: str, wish: EngineWish | None, has_gpu: bool, has_vllm: bool, with_vllm: bool
) -> None:
    made = plan("m", 1, architecture=architecture, wish=wish)
    ((chosen,), refused) = choose_engines([made], has_gpu=has_gpu, has_vllm=has_vllm)
    assert (chosen.with_vllm, refused) == (with_vllm, [])


@pytest.mark.parametrize(("has_gpu", "has_vllm"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("architecture", "wish"),
    [("MixtralForCausalLM", None), ("LlamaForCausalLM", EngineWish.VLLM)],
)
def test_a_model_that_needs_vllm_is_left_out_without_it(
    architecture: str, wish: EngineWish | None, has_gpu: bool, has_vllm: bool
) -> None:
    plans = [plan("needs-it", 1, architecture=architecture, wish=wish), plan("other", 1)]
    chosen, refused = choose_engines(plans, has_gpu=has_gpu, has_vllm=has_vllm)
    assert [made.name for made in chosen] == ["other"]
    ((left_out, error),) = refused
    assert left_out.name == "needs-it"
    assert isinstance(error, NoEngineError)
    assert "capacloud[vllm]" in str(error)


def test_only_text_is_generated_by_vllm() -> None:
    embedder = plan("e", 1, task=Task.EMBEDDING, wish=EngineWish.VLLM)
    own = plan("o", 1, task=Task.EMBEDDING, architecture="BertModel")
    (chosen,), ((_, error),) = choose_engines([embedder, own], has_gpu=True, has_vllm=True)
    assert not chosen.with_vllm
    assert "generate text" in str(error)

"""Which engine runs a model: ours, or vLLM.

vLLM is chosen where its owner says so, and, if it is installed, for architectures that our own
engine does not run; a model that takes several cards is vLLM's, too (`capanode.placement`). Ours is
preferred where both can: it keeps what the market's sampler promises, and its sandbox is closed
from the first moment.
"""

from collections.abc import Sequence
from dataclasses import replace

from capanode.errors import NodeError, NoEngineError
from capanode.settings import EngineWish
from capanode.tasks import DECODERS, VLLM_DECODERS
from capanode.vllm_package import VLLM_VERSIONS
from capanode.workers import ModelPlan
from protocol.messages import Task


def choose_engines(
    plans: Sequence[ModelPlan], *, has_gpu: bool, has_vllm: bool
) -> tuple[list[ModelPlan], list[tuple[ModelPlan, NodeError]]]:
    """The plans, each with its engine, and those whose engine is not here, with why."""
    chosen: list[ModelPlan] = []
    refused: list[tuple[ModelPlan, NodeError]] = []
    for plan in plans:
        try:
            chosen.append(_with_engine(plan, has_gpu=has_gpu, has_vllm=has_vllm))
        except NoEngineError as error:
            refused.append((plan, error))
    return chosen, refused


def may_share_cards(plan: ModelPlan) -> bool:
    """Whether vLLM, where it is installed, may run the model on several cards."""
    return plan.manifest.task is Task.CAUSAL_LM and plan.wish is not EngineWish.OWN


def _with_engine(plan: ModelPlan, *, has_gpu: bool, has_vllm: bool) -> ModelPlan:
    """The engine for one device. Raises NoEngineError."""
    architecture = plan.manifest.architecture
    generates = plan.manifest.task is Task.CAUSAL_LM
    is_needed = architecture in VLLM_DECODERS or plan.wish is EngineWish.VLLM
    if is_needed and not generates:
        raise NoEngineError("vLLM runs only models that generate text: leave its `engine` out")
    if is_needed and not (has_gpu and has_vllm):
        first, last = (".".join(map(str, limit)) for limit in VLLM_VERSIONS)
        raise NoEngineError(
            f"it is to be run by vLLM, which takes a GPU, the isolation tier bwrap, and vLLM "
            f"{first} or newer, before {last} (pip install 'capacloud[vllm]')"
        )
    is_free = plan.wish is None and has_gpu and has_vllm
    is_chosen = is_free and generates and architecture not in DECODERS
    return replace(plan, with_vllm=is_needed or is_chosen)

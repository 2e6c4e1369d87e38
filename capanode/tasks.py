"""What the node knows of each task, in one table: how it is run, sized, measured and priced.

What both sides know of a task (its input, its units) is in `protocol.tasks`. Nothing else in this
package branches on a task: a new one is a row here and an engine in `capanode.engines`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from capanode.engines.base import EngineInfo
from capanode.measurements import (
    Speed,
    measure_embedding,
    measure_generation,
    measure_images,
    measure_tensors,
)
from capanode.worker.jobs import JobWorker
from protocol.messages import Task


@dataclass(frozen=True, slots=True)
class NodeTaskSpec:
    """How a node serves one task."""

    # `module:Class`, by name because only the worker may import it: engines import torch.
    engine: str
    # `architectures` in config.json that the engine runs.
    architectures: tuple[str, ...]
    # What its model folder must hold beside config.json and the weights.
    model_files: tuple[str, ...]
    # What its engine computes in whatever its files hold; None is the type of most weights.
    dtype: str | None
    # How many jobs the engine is asked to run at once on a CPU. It takes fewer if its cache has no
    # room: what it says when it is ready is what the node offers.
    cpu_slots: int
    # The start-up benchmark.
    measure: Callable[[JobWorker, EngineInfo], Awaitable[Speed]]
    # Which measured speed earns which price position.
    earned_by: Mapping[str, str]


# Those of `capanode.engines.families`, whose modules only the worker needs.
DECODERS = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)

# Those that the transformers library runs, where it is installed; slower than ours.
OTHER_DECODERS = (
    "BloomForCausalLM",
    "CohereForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "MptForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "PhiForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
)

# Those that only vLLM runs: mixtures of experts, and a few others, by its registry.
VLLM_DECODERS = (
    "Ernie4_5ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Exaone4ForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GraniteMoeForCausalLM",
    "MixtralForCausalLM",
    "OlmoeForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
)

NODE_TASKS: Mapping[Task, NodeTaskSpec] = {
    Task.CAUSAL_LM: NodeTaskSpec(
        engine="capanode.engines.causal_lm:CausalLM",
        architectures=(*DECODERS, *OTHER_DECODERS, *VLLM_DECODERS),
        model_files=("tokenizer.json",),
        dtype=None,
        cpu_slots=16,
        measure=measure_generation,
        # A busy node batches, so output is priced by what several streams get done together.
        earned_by={"input_per_mtok": "prefill_tps", "output_per_mtok": "batched_tps"},
    ),
    Task.EMBEDDING: NodeTaskSpec(
        engine="capanode.engines.embedding:TextEmbedder",
        architectures=(
            "BertModel",
            "RobertaModel",
            "XLMRobertaModel",
            "CamembertModel",
            "ModernBertModel",
            "Qwen3Model",
            "BertForSequenceClassification",
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
            "ModernBertForSequenceClassification",
        ),
        model_files=("tokenizer.json",),
        dtype=None,
        cpu_slots=4,
        measure=measure_embedding,
        earned_by={"input_per_mtok": "prefill_tps"},
    ),
    Task.IMAGE_CLASSIFICATION: NodeTaskSpec(
        engine="capanode.engines.image:ImageClassifier",
        architectures=("EfficientNetLite",),
        model_files=("labels.json",),
        dtype=None,
        cpu_slots=4,
        measure=measure_images,
        earned_by={"image": "batched_tps"},
    ),
    Task.TENSOR: NodeTaskSpec(
        engine="capanode.engines.tensor:TensorEngine",
        architectures=(
            "TensorPerceptron",
            "TensorTrees",
            "TensorConvolutions",
            "TensorForecaster",
            "TensorExport",
        ),
        model_files=(),
        # Trees are mostly indices.
        dtype="fp32",
        # Jobs are small: what a step costs is mostly the same for one row and for many.
        cpu_slots=64,
        measure=measure_tensors,
        earned_by={"tensor_per_kelement": "batched_tps"},
    ),
}


# Loading a model of these runs what its maker wrote: only where the operator allows it.
CODE_ARCHITECTURES = frozenset({"TensorExport"})


def engine_of(task: Task, architecture: str, *, with_vllm: bool = False) -> str:
    """`module:Class` of the engine for a model. Whether that is vLLM, `capanode.placement` says."""
    if with_vllm:
        return "capanode.engines.vllm_lm:VllmLM"
    if architecture in OTHER_DECODERS:
        return "capanode.engines.transformers_lm:TransformersLM"
    return NODE_TASKS[task].engine


# Decoders that sentence-transformers also publishes as encoders, under the same architecture.
EMBEDDING_DECODERS = frozenset({"Qwen3ForCausalLM"})


def task_of_architecture(architecture: object, *, is_sentence_encoder: bool = False) -> Task | None:
    """The task whose engine runs this architecture; None if no engine here does. The files of a
    sentence encoder say how the states of its tokens become one vector."""
    if is_sentence_encoder and architecture in EMBEDDING_DECODERS:
        return Task.EMBEDDING
    for task, spec in NODE_TASKS.items():
        if architecture in spec.architectures:
            return task
    return None

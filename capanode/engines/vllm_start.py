"""vLLM's engine in this very process: how it is set up and started. The only file that imports it.

Written against vLLM 0.33 and **never run on a GPU by us**; a stand-in of the same signatures is
what tests have seen. It starts with our sandbox open to it: it asks about a model's class in a
process of its own, compiles kernels with the system's compiler, and wants sockets, of a network
that is empty. All that it writes goes to the scratch folder, and is gone with the worker.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capanode.engines.base import ModelLoadError
from capanode.vllm_package import VLLM_VERSIONS, is_known_vllm
from protocol.limits import TOP_LOGPROBS_MAX

# Its own default: what is left is for what torch does not count.
_DEVICE_SHARE_MAX = 0.92
# It takes what fits beside the weights.
_CONTEXT_AUTOMATIC = -1


@dataclass(frozen=True, slots=True)
class VllmProcess:
    """A started engine, and what of the library is needed to speak to it. `refusal` is what it
    raises for a request that it does not take."""

    engine: Any
    sampling_params: Callable[..., Any]
    tokens_input: Callable[..., Any]
    refusal: type[Exception]
    version: str
    cards: int

    @property
    def context_tokens(self) -> int:
        return int(self.engine.model_config.max_model_len)

    @property
    def vocab(self) -> int:
        return int(self.engine.model_config.get_vocab_size())


def start_vllm(model_dir: Path, *, slots: int, device: torch.device) -> VllmProcess:
    """Load a model on all cards that this process sees. Raises ModelLoadError, and what vLLM
    raises."""
    os.environ.update(_environment(tempfile.gettempdir()))
    try:
        # After its settings, which it reads when it is imported.
        import vllm  # noqa: PLC0415
        from vllm.exceptions import VLLMValidationError  # noqa: PLC0415
        from vllm.inputs import tokens_input  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415
    except ImportError:
        raise ModelLoadError("vLLM is not installed whole: pip install 'capacloud[vllm]'") from None
    if not is_known_vllm(vllm.__version__):
        first, last = (".".join(map(str, limit)) for limit in VLLM_VERSIONS)
        raise ModelLoadError(
            f"vLLM {vllm.__version__} is here; {first} or newer is run, before {last}"
        )

    def sampling_params(**fields: Any) -> Any:
        # Ids only, and of each token once: their text is ours.
        return SamplingParams(**fields, detokenize=False, output_kind=RequestOutputKind.DELTA)

    cards = torch.cuda.device_count() if device.type == "cuda" else 1
    fields = _engine_fields(model_dir, slots=slots, device=device, cards=cards)
    engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**fields))
    return VllmProcess(
        engine, sampling_params, tokens_input, VLLMValidationError, vllm.__version__, cards
    )


def _environment(scratch: str) -> Mapping[str, str]:
    return {
        # The engine runs where `step` is called, and not in a process behind a socket.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # CUDA has been started by then, which no fork survives.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # No code beside vLLM's own.
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # It would look for an address of the host's.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        # Its sampler is compiled by nvcc, which few machines have.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # A pool of compiling processes would outlive the start.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "VLLM_CACHE_ROOT": f"{scratch}/vllm",
        "VLLM_CONFIG_ROOT": f"{scratch}/vllm",
        "VLLM_RPC_BASE_PATH": scratch,
        "TRITON_CACHE_DIR": f"{scratch}/triton",
        "FLASHINFER_WORKSPACE_BASE": scratch,
        "XDG_CACHE_HOME": f"{scratch}/cache",
    }


def _engine_fields(
    model_dir: Path, *, slots: int, device: torch.device, cards: int
) -> Mapping[str, Any]:
    """Of `EngineArgs`."""
    # What the node promised to this worker: `open_cuda` has set it.
    is_card = device.type == "cuda"
    share = torch.cuda.get_per_process_memory_fraction(device) if is_card else 1.0
    group: dict[str, Any] = {"distributed_executor_backend": "uni"}
    if cards > 1:
        group = {
            "distributed_executor_backend": "mp",
            "worker_extension_cls": "capanode.engines.vllm_group.GroupMember",
            # It asks a process of its own which cards reach each other.
            "disable_custom_all_reduce": True,
        }
    return {
        "model": str(model_dir),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        # A model's own defaults are not what a client has asked for.
        "generation_config": "vllm",
        "max_model_len": _CONTEXT_AUTOMATIC,
        "max_num_seqs": slots,
        "max_logprobs": TOP_LOGPROBS_MAX,
        "gpu_memory_utilization": min(share, _DEVICE_SHARE_MAX),
        "tensor_parallel_size": cards,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        **group,
    }

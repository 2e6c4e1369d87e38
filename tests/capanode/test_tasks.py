"""The node's table of tasks fits the protocol's, and what it names exists."""

import importlib
from dataclasses import fields
from pathlib import Path

import pytest

from capanode.measurements import Speed
from capanode.models.convert_layout import convert_layout
from capanode.tasks import NODE_TASKS, task_of_architecture
from protocol.messages import Task
from protocol.tasks import TASKS
from tests.capanode.model_makers import layout_files, write_files


@pytest.mark.parametrize("task", Task)
def test_each_task_names_an_engine_and_earns_its_prices(task: Task) -> None:
    spec = NODE_TASKS[task]
    module, _, name = spec.engine.partition(":")
    assert callable(getattr(importlib.import_module(module), name).load)
    assert set(spec.earned_by) == set(TASKS[task].prices)
    assert set(spec.earned_by.values()) <= {field.name for field in fields(Speed)}
    assert spec.cpu_slots > 0


def test_an_architecture_belongs_to_one_task_at_most() -> None:
    names = [name for spec in NODE_TASKS.values() for name in spec.architectures]
    assert len(names) == len(set(names))
    assert task_of_architecture("LlamaForCausalLM") is Task.CAUSAL_LM
    assert task_of_architecture("FooForCausalLM") is None
    assert task_of_architecture(["LlamaForCausalLM"]) is None


@pytest.mark.parametrize(
    ("architecture", "has_vllm", "words"),
    [
        ("MixtralForCausalLM", False, r"run by vLLM: pip install 'capacloud\[vllm\]'"),
        ("MixtralForCausalLM", True, ""),
        ("FalconForCausalLM", True, ""),
    ],
)
def test_a_model_that_only_vllm_runs_is_kept_where_it_is_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    has_vllm: bool,
    words: str,
) -> None:
    installed = "0.33.0" if has_vllm else None
    monkeypatch.setattr("capanode.models.convert_layout.installed_vllm", lambda: installed)
    source, target = tmp_path / "source", tmp_path / "target"
    write_files(source, layout_files(architecture))
    target.mkdir()
    if words:
        with pytest.raises(ValueError, match=words):
            convert_layout(source, target, on_bytes=lambda done, total: None)
        return
    made = convert_layout(source, target, on_bytes=lambda done, total: None)
    assert (made["architecture"], made["quantization"]) == (architecture, "fp32")

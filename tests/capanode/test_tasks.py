"""The node's table of tasks fits the protocol's, and what it names exists."""

import importlib
from dataclasses import fields

import pytest

from capanode.measurements import Speed
from capanode.tasks import NODE_TASKS, task_of_architecture
from protocol.messages import Task
from protocol.tasks import TASKS


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

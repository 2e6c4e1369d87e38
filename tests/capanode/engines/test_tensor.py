"""Tensor models answer as what they were exported from; rows of many jobs share a step."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from capanode.engines.base import Completed, EngineRefusal, ModelLoadError, Produced, Started
from capanode.engines.tensor import TensorEngine
from protocol.codec import decode
from protocol.errors import Code
from protocol.payload import EmbeddingInput
from protocol.pricing import Units
from protocol.tensors import (
    Datatype,
    NamedTensor,
    TensorInput,
    TensorOutput,
    join_strings,
)
from tests.capanode.engines.tiny_models import Transcript, run
from tests.examples import example

SIZES = [3, 5, 2]
CONFIG: dict[str, Any] = {
    "architectures": ["TensorPerceptron"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [
        {"name": "values", "datatype": "FP32", "shape": [-1, 2], "kind": "values"},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 2], "kind": "scores"},
        {"name": "class", "datatype": "INT64", "shape": [-1], "kind": "class"},
        {"name": "label", "datatype": "BYTES", "shape": [-1], "kind": "label"},
    ],
    "layers": SIZES,
    "activation": "tanh",
    "link": "softmax",
    "classes": ["no", "yes"],
}


def perceptron_weights(sizes: list[int] = SIZES) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}
    for number, (into, out) in enumerate(pairwise(sizes)):
        weights[f"layers.{number}.weight"] = torch.randn((out, into), generator=draw)
        weights[f"layers.{number}.bias"] = torch.randn((out,), generator=draw)
    return weights


def write(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def load(folder: Path, *, slots: int = 8) -> TensorEngine:
    return TensorEngine.load(folder, slots=slots, threads=1)


def tensor(rows: Any, name: str = "x", datatype: Datatype = Datatype.FP32) -> NamedTensor:
    numbers = np.asarray(rows, "<f4" if datatype is Datatype.FP32 else None)
    return NamedTensor(name, datatype, numbers.shape, numbers.tobytes())


def answer(transcript: Transcript, job_id: str = "job") -> dict[str, Any]:
    (data,) = [e.data for e in transcript.of(job_id) if isinstance(e, Produced)]
    found: dict[str, Any] = {}
    for output in decode(TensorOutput, data).outputs:
        if output.datatype is Datatype.BYTES:
            found[output.name] = list(output.strings())
        else:
            kind = {Datatype.FP32: "<f4", Datatype.INT64: "<i8"}[output.datatype]
            found[output.name] = np.frombuffer(output.data, kind).reshape(output.shape)
    return found


def ask(engine: TensorEngine, job_input: TensorInput) -> dict[str, Any]:
    engine.submit("job", job_input)
    return answer(run(engine))


@pytest.fixture
def perceptron(tmp_path: Path) -> TensorEngine:
    return load(write(tmp_path, perceptron_weights()))


def reference(rows: Any, weights: dict[str, Tensor]) -> Tensor:
    x = torch.tensor(rows, dtype=torch.float32)
    x = torch.tanh(x @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    return x @ weights["layers.1.weight"].T + weights["layers.1.bias"]


def test_a_perceptron_answers_with_values_scores_class_and_label(perceptron: TensorEngine) -> None:
    rows = [[0.5, -1.0, 2.0], [1.5, 0.0, -3.0]]
    got = ask(perceptron, TensorInput((tensor(rows),)))
    values = reference(rows, perceptron_weights())
    assert got["values"] == pytest.approx(values.numpy(), abs=1e-6)
    assert got["scores"] == pytest.approx(values.softmax(-1).numpy(), abs=1e-6)
    assert got["class"].tolist() == values.argmax(-1).tolist()
    assert got["label"] == [[b"no", b"yes"][place] for place in got["class"]]


class Doubler(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((2 * x, x.sum(1, keepdim=True)), 1)


def write_program(folder: Path, rows: Any = None, **changes: Any) -> Path:
    """A model of three numbers in and four out; `rows` is the dimension that it was exported for,
    any number if it is None."""
    folder.mkdir(exist_ok=True)
    size = rows if isinstance(rows, int) else 4
    any_size = torch.export.Dim("rows", max=16_384) if rows is None else rows
    shapes = None if isinstance(rows, int) else {"x": {0: any_size}}
    program = torch.export.export(Doubler(), (torch.zeros(size, 3),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    outputs = [{"name": "values", "datatype": "FP32", "shape": [-1, 4], "kind": "values"}]
    config = CONFIG | {"architectures": ["TensorExport"], "outputs": outputs, "width": 4}
    plain = {**config, "link": "identity", "classes": [], **changes}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


@pytest.mark.parametrize("rows", [None, 3, torch.export.Dim("rows", min=4, max=6)])
def test_an_exported_program_answers_for_any_number_of_rows(tmp_path: Path, rows: Any) -> None:
    engine = load(write_program(tmp_path, rows))
    for asked in (1, 5, 13):
        numbers = np.arange(3.0 * asked, dtype="<f4").reshape(asked, 3)
        got = ask(engine, TensorInput((tensor(numbers),)))["values"]
        assert got[:, :3] == pytest.approx(2 * numbers)
        assert got[:, 3] == pytest.approx(numbers.sum(1))


def test_a_program_that_is_not_what_its_config_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not 7 numbers"):
        load(write_program(tmp_path, width=7))
    config = (tmp_path / "config.json").read_text()
    four = [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 4]}]
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"inputs": four}))
    with pytest.raises(ModelLoadError, match=r"takes rows of \[3\]"):
        load(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"junk")
    with pytest.raises(ModelLoadError, match="does not run"):
        load(tmp_path)


def test_a_model_runs_on_the_device_that_its_profile_names(tmp_path: Path) -> None:
    folder = write(tmp_path, perceptron_weights())
    engine = TensorEngine.load(folder, slots=1, threads=1, device=torch.device("cpu"))
    assert "device=cpu-" in engine.info.profile
    assert len(ask(engine, TensorInput((tensor([[1, 2, 3]]),)))["class"]) == 1


def test_only_the_outputs_that_are_asked_for_come_in_their_order(perceptron: TensorEngine) -> None:
    got = ask(perceptron, TensorInput((tensor([[1, 2, 3]]),), ("label", "values")))
    assert list(got) == ["label", "values"]


def test_what_is_metered_are_the_elements_of_the_input(perceptron: TensorEngine) -> None:
    perceptron.submit("job", TensorInput((tensor(np.zeros((4, 3))),)))
    transcript = run(perceptron)
    assert transcript.of("job")[0] == Started("job", Units(tensor_elements=12))
    assert transcript.of("job")[-1] == Completed("job", "complete", Units(tensor_elements=12))


@pytest.mark.parametrize("kind", ["<f8", "<f2", "<i4", "<u1", "bf16"])
def test_numbers_of_any_type_are_read(tmp_path: Path, kind: str) -> None:
    rows = [[1, 2, 4], [3, 5, 8]]
    types = {"<f8": "FP64", "<f2": "FP16", "<i4": "INT32", "<u1": "UINT8", "bf16": "BF16"}
    inputs = [{"name": "x", "datatype": types[kind], "shape": [-1, 3]}]
    engine = load(write(tmp_path, perceptron_weights(), inputs=inputs))
    if kind == "bf16":
        data = torch.tensor(rows, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    else:
        data = np.array(rows, kind).tobytes()
    got = ask(engine, TensorInput((NamedTensor("x", Datatype(types[kind]), (2, 3), data),)))
    assert got["values"] == pytest.approx(reference(rows, perceptron_weights()).numpy(), abs=1e-6)


def test_several_inputs_are_joined_and_a_scaler_is_applied(tmp_path: Path) -> None:
    weights = perceptron_weights() | {
        "scaler.mean": torch.tensor([1.0, 2.0, 3.0]),
        "scaler.scale": torch.tensor([2.0, 4.0, 8.0]),
    }
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "b", "datatype": "FP32", "shape": [-1, 2]},
    ]
    engine = load(write(tmp_path, weights, inputs=inputs))
    # In any order: names say which is which.
    given = (tensor([[4.0, 5.0]], "b"), tensor([[3.0]], "a"))
    values = reference([[1.0, 0.5, 0.25]], weights)
    assert ask(engine, TensorInput(given))["values"] == pytest.approx(values.numpy(), abs=1e-6)


def test_jobs_share_steps_and_a_large_one_lets_small_ones_pass(
    perceptron: TensorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capanode.engines.tensor._STEP_ROWS_MAX", 8)
    rows = np.random.default_rng(0).standard_normal((20, 3)).astype("<f4")
    perceptron.submit("large", TensorInput((tensor(rows),)))
    perceptron.submit("small", TensorInput((tensor(rows[:2]),)))
    perceptron.submit("left", TensorInput((tensor(rows),)))
    order: list[tuple[int, str]] = []

    def after(step: int) -> None:
        if step == 1:
            perceptron.cancel("left")

    transcript = run(perceptron, after_step=after)
    order = [(n, e.job_id) for n, e in enumerate(transcript.events) if isinstance(e, Completed)]
    assert [job_id for _, job_id in order] == ["small", "large"]
    alone = reference(rows.tolist(), perceptron_weights()).numpy()
    assert answer(transcript, "large")["values"] == pytest.approx(alone, abs=1e-6)
    assert answer(transcript, "small")["values"] == pytest.approx(alone[:2], abs=1e-6)
    assert perceptron.is_idle


@pytest.mark.slow
def test_trees_answer_as_scikit_learn_does(tmp_path: Path) -> None:
    diagnosis = example("diagnosis")
    model = diagnosis.train(tmp_path, trees=12)
    _, records, _, _ = diagnosis.split()
    rows = records.astype("<f4")
    got = ask(load(tmp_path), TensorInput((tensor(rows, "record"),)))
    assert got["probabilities"] == pytest.approx(model.predict_proba(rows), abs=1e-6)
    names = [b"malignant", b"benign"]
    assert got["diagnosis"] == [names[place] for place in model.predict(rows)]


@pytest.mark.slow
def test_convolutions_answer_as_torch_does(tmp_path: Path) -> None:
    digits = example("digits")
    network = digits.train(tmp_path, epochs=1)
    train_x, pixels, _, _ = digits.split()
    got = ask(load(tmp_path), TensorInput((tensor(pixels[:50], "pixels"),)))
    scaled = (torch.from_numpy(pixels[:50]) - float(train_x.mean())) / float(train_x.std())
    with torch.no_grad():
        wanted = network(scaled).softmax(-1).numpy()
    assert got["scores"] == pytest.approx(wanted, abs=1e-5)
    assert got["digit"].tolist() == wanted.argmax(-1).tolist()


@pytest.mark.slow
def test_a_forecaster_sees_the_faults_of_a_pump(tmp_path: Path) -> None:
    sensors = example("sensors")
    sensors.train(tmp_path, epochs=40)
    series = sensors.records(300, faults=(200,), seed=1)
    errors = ask(load(tmp_path), TensorInput((tensor(series, "record"),)))["error"][:, 0]
    settled = errors[sensors.WINDOW :]
    alarms = np.flatnonzero(settled > sensors.ALARM) + sensors.WINDOW
    assert alarms.min() == 200
    assert alarms.max() < 200 + 10 + sensors.WINDOW


def forecaster(tmp_path: Path) -> TensorEngine:
    weights = perceptron_weights([4, 6, 2]) | {"error.scale": torch.tensor([0.5, 2.0])}
    return load(
        write(
            tmp_path,
            weights,
            architectures=["TensorForecaster"],
            inputs=[{"name": "record", "datatype": "FP32", "shape": [-1, 2]}],
            outputs=[{"name": "error", "datatype": "FP32", "shape": [-1, 1], "kind": "values"}],
            layers=[4, 6, 2],
            window_rows=3,
            classes=[],
        )
    )


def test_a_stream_cut_anywhere_gives_the_errors_of_the_unbroken_one(tmp_path: Path) -> None:
    engine = forecaster(tmp_path)
    rows = np.random.default_rng(3).standard_normal((12, 2)).astype("<f4")
    whole = ask(engine, TensorInput((tensor(rows, "record"),)))["error"]
    assert len(whole) == 12
    for size in (1, 2, 5):
        parts = []
        for start in range(0, 12, size):
            context = min(start, 2)
            part = rows[start - context : start + size]
            job = TensorInput((tensor(part, "record"),), context_rows=context)
            assert job.elements == 2 * len(rows[start : start + size])
            parts.append(ask(engine, job)["error"])
        assert np.concatenate(parts) == pytest.approx(whole, rel=1e-5)


def test_a_forecast_looks_at_the_rows_before(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]]
    got = ask(forecaster(tmp_path), TensorInput((tensor(rows, "record"),)))["error"]
    before = [[*rows[0], *rows[0]], [*rows[0], *rows[0]], [*rows[0], *rows[1]]]
    off = (torch.tensor(rows) - reference(before, perceptron_weights([4, 6, 2]))) / torch.tensor(
        [0.5, 2.0]
    )
    assert got == pytest.approx(off.square().mean(1, keepdim=True).numpy(), rel=1e-5)


STRINGS = NamedTensor("x", Datatype.BYTES, (1, 3), join_strings([b"a", b"b", b"c"]))


@pytest.mark.parametrize(
    ("job_input", "code"),
    [
        (TensorInput((tensor([[1, 2]]),)), Code.INVALID_INPUT),
        (TensorInput((tensor([1, 2, 3]),)), Code.INVALID_INPUT),
        (TensorInput((tensor([[1, 2, 3]], "y"),)), Code.INVALID_INPUT),
        (TensorInput((tensor([[1, 2, 3]]), tensor([[1]], "y"))), Code.INVALID_INPUT),
        (TensorInput((STRINGS,)), Code.INVALID_INPUT),
        (
            TensorInput((tensor(np.zeros((1, 3), "<i4"), datatype=Datatype.INT32),)),
            Code.INVALID_INPUT,
        ),
        (TensorInput((tensor([[1, 2, 3]]),), ("other",)), Code.INVALID_INPUT),
        (TensorInput((tensor([[1, 2, 3]] * 2),), context_rows=1), Code.INVALID_INPUT),
        (TensorInput((tensor(np.zeros((70_000, 3))),)), Code.INPUT_TOO_LARGE),
        (EmbeddingInput(("text",)), Code.INVALID_INPUT),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    perceptron: TensorEngine, job_input: Any, code: Code
) -> None:
    with pytest.raises(EngineRefusal) as refusal:
        perceptron.submit("job", job_input)
    assert refusal.value.code is code
    assert perceptron.is_idle


def tree_weights(left: Any, right: Any, **changes: Tensor) -> dict[str, Tensor]:
    size = torch.tensor(left).shape
    return {
        "trees.left": torch.tensor(left),
        "trees.right": torch.tensor(right),
        "trees.feature": torch.zeros(size, dtype=torch.long),
        "trees.threshold": torch.zeros(size, dtype=torch.float64),
        "trees.value": torch.ones(size),
        "trees.output": torch.zeros(size[0], dtype=torch.long),
        "base": torch.zeros(2),
        **changes,
    }


@pytest.mark.parametrize(
    ("weights", "changes", "words"),
    [
        (perceptron_weights, {"layers": [3, 4, 2]}, "layers.0.weight has shape"),
        (perceptron_weights, {"layers": [4, 5, 2]}, "numbers a row"),
        (perceptron_weights, {"classes": ["one"]}, "does not name 2"),
        (perceptron_weights, {"link": "softplus"}, "link is none of"),
        (perceptron_weights, {"activation": "swish"}, "the activation is none of"),
        (perceptron_weights, {"architectures": ["Pickle"]}, "run by no engine"),
        (perceptron_weights, {"inputs": "x"}, "inputs is no list"),
        (perceptron_weights, {"outputs": []}, "no tensors"),
        (
            lambda: tree_weights([[1, 0]], [[1, 0]]),
            {"architectures": ["TensorTrees"]},
            "goes in circles",
        ),
        (
            lambda: tree_weights([[5]], [[0]]),
            {"architectures": ["TensorTrees"]},
            "points beyond",
        ),
        (
            lambda: tree_weights([[0]], [[0]], **{"trees.feature": torch.tensor([[3]])}),
            {"architectures": ["TensorTrees"]},
            "points beyond",
        ),
    ],
)
def test_a_damaged_model_is_not_loaded(
    tmp_path: Path, weights: Callable[[], dict[str, Tensor]], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelLoadError, match=words):
        load(write(tmp_path, weights(), **changes))

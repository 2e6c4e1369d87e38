"""Diagnosis on a table: train gradient-boosted trees, serve them, and ask for a record's diagnosis.

    pip install capacloud scikit-learn httpx
    python docs/examples/diagnosis.py train diagnosis/
    capanode models add diagnosis/ --name diagnosis
    python docs/examples/diagnosis.py ask diagnosis --url http://127.0.0.1:8080 --key sk-capa-…

The data are scikit-learn's own: 569 biopsies of breast tumours, 30 measurements each. What you send
is a patient's record: a node sees it while it computes. Ask for nodes that promise to keep nothing
(`"provider": {"data_collection": "deny"}`), leave names and numbers of people out, and do not take
the answer of an example for medical advice.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split


def split() -> tuple[Any, Any, Any, Any]:
    table = load_breast_cancer()
    return tuple(train_test_split(table.data, table.target, test_size=0.25, random_state=0))


def train(folder: Path, *, trees: int = 100) -> GradientBoostingClassifier:
    """Train, and write what a node serves: model.safetensors and config.json."""
    train_x, test_x, train_y, test_y = split()
    model = GradientBoostingClassifier(n_estimators=trees, max_depth=3, random_state=0)
    model.fit(train_x, train_y)
    print(f"{model.score(test_x, test_y):.1%} of {len(test_y)} records that it did not learn from")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(model), folder / "model.safetensors")
    config = {
        "architectures": ["TensorTrees"],
        "inputs": [{"name": "record", "datatype": "FP32", "shape": [-1, train_x.shape[1]]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2], "kind": "scores"},
            {"name": "diagnosis", "datatype": "BYTES", "shape": [-1], "kind": "label"},
        ],
        "link": "sigmoid",
        "classes": ["malignant", "benign"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return model


def tensors_of(model: GradientBoostingClassifier) -> dict[str, np.ndarray]:
    """The trees as tensors [trees, nodes]; a leaf goes to itself."""
    trees = [tree.tree_ for row in model.estimators_ for tree in row]
    nodes = max(tree.node_count for tree in trees)
    size = (len(trees), nodes)
    itself = np.tile(np.arange(nodes), (len(trees), 1))
    left, right = itself.copy(), itself.copy()
    feature = np.zeros(size, np.int64)
    threshold, value = np.zeros(size, np.float64), np.zeros(size, np.float32)
    for number, tree in enumerate(trees):
        count = tree.node_count
        inner = tree.children_left >= 0
        left[number, :count][inner] = tree.children_left[inner]
        right[number, :count][inner] = tree.children_right[inner]
        feature[number, :count] = np.where(inner, tree.feature, 0)
        threshold[number, :count] = np.where(inner, tree.threshold, 0)
        value[number, :count] = model.learning_rate * tree.value[:, 0, 0]
    # What the model says before its first tree: the same for any record.
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))
    return {
        "trees.left": left,
        "trees.right": right,
        "trees.feature": feature,
        "trees.threshold": threshold,
        "trees.value": value,
        "trees.output": np.tile(np.arange(model.estimators_.shape[1]), len(model.estimators_)),
        "base": start[0].astype(np.float32),
    }


def ask(url: str, key: str, model: str, records: Any) -> list[tuple[str, list[float]]]:
    """The diagnosis of each record, and the probabilities of both."""
    import httpx

    request = {
        "inputs": [
            {
                "name": "record",
                "datatype": "FP32",
                "shape": list(records.shape),
                "data": records.tolist(),
            }
        ],
        "parameters": {"provider": json.dumps({"data_collection": "deny"})},
    }
    answer = httpx.post(
        f"{url}/v2/models/{model}/infer",
        headers={"authorization": f"Bearer {key}"},
        json=request,
        timeout=60,
    )
    answer.raise_for_status()
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    chances = np.array(outputs["probabilities"]).reshape(len(records), 2)
    return list(zip(outputs["diagnosis"], chances.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    asking = commands.add_parser("ask")
    asking.add_argument("model")
    asking.add_argument("--url", default="http://127.0.0.1:8080")
    asking.add_argument("--key", required=True)
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder)
        return
    _, records, _, truth = split()
    names = ("malignant", "benign")
    for answer, right in zip(
        ask(options.url, options.key, options.model, records[:5]), truth, strict=False
    ):
        diagnosis, chances = answer
        print(f"{diagnosis} ({max(chances):.1%}); in truth {names[right]}")


if __name__ == "__main__":
    main()

"""Handwritten digits: train a small convolutional network, serve it, and read some digits.

    pip install capacloud scikit-learn "tritonclient[http]"
    python docs/examples/digits.py train digits/
    capanode models add digits/ --name digits
    python docs/examples/digits.py ask digits --url 127.0.0.1:8080 --key sk-capa-…

The data are scikit-learn's own: 1,797 pictures of 8 × 8 pixels. `ask` uses Triton's own client,
which sends the pixels as they lie in memory.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

_CHANNELS = (16, 32)


def split() -> tuple[Any, Any, Any, Any]:
    digits = load_digits()
    pixels = digits.images[:, None].astype(np.float32)
    return tuple(train_test_split(pixels, digits.target, test_size=0.25, random_state=0))


def train(folder: Path, *, epochs: int = 15) -> nn.Sequential:
    """Train, and write what a node serves: model.safetensors and config.json."""
    torch.manual_seed(0)
    train_x, test_x, train_y, test_y = split()
    mean, scale = float(train_x.mean()), float(train_x.std())
    first, second = _CHANNELS
    network = nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 4, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    data = torch.utils.data.TensorDataset(
        (torch.from_numpy(train_x) - mean) / scale, torch.from_numpy(train_y)
    )
    for _ in range(epochs):
        for pixels, digits in torch.utils.data.DataLoader(data, 64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pixels), digits).backward()
            optimizer.step()
    with torch.no_grad():
        guesses = network((torch.from_numpy(test_x) - mean) / scale).argmax(1)
    right = float((guesses == torch.from_numpy(test_y)).float().mean())
    print(f"{right:.1%} of {len(test_y)} digits that it did not learn from")
    folder.mkdir(parents=True, exist_ok=True)
    # Layers with weights, by their place among those of the config.
    layers = {0: network[0], 2: network[3], 4: network[7]}
    tensors = {
        f"layers.{place}.{name}": parameter.detach().contiguous()
        for place, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }
    tensors["scaler.mean"], tensors["scaler.scale"] = torch.tensor([mean]), torch.tensor([scale])
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["TensorConvolutions"],
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, 10], "kind": "scores"},
            {"name": "digit", "datatype": "INT64", "shape": [-1], "kind": "class"},
        ],
        "link": "softmax",
        "layers": [
            {"kind": "conv", "channels": first, "kernel": 3, "padding": 1},
            {"kind": "pool", "size": 2},
            {"kind": "conv", "channels": second, "kernel": 3, "padding": 1},
            {"kind": "pool", "size": 2},
            {"kind": "dense", "size": 10},
        ],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return network


def ask(url: str, key: str, model: str, pixels: Any) -> list[int]:
    """The digits in pictures of 8 × 8 pixels."""
    from tritonclient.http import InferenceServerClient, InferInput

    client = InferenceServerClient(url)
    tensor = InferInput("pixels", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)
    answer = client.infer(model, [tensor], headers={"authorization": f"Bearer {key}"})
    return [int(digit) for digit in answer.as_numpy("digit")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    asking = commands.add_parser("ask")
    asking.add_argument("model")
    asking.add_argument("--url", default="127.0.0.1:8080", help="host and port")
    asking.add_argument("--key", required=True)
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder)
        return
    _, pixels, _, truth = split()
    print("read    ", *ask(options.url, options.key, options.model, pixels[:20]))
    print("in truth", *truth[:20])


if __name__ == "__main__":
    main()

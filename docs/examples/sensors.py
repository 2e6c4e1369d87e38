"""Anomalies in sensor records: train a forecaster, serve it, and stream records to it.

    pip install capacloud websockets
    python docs/examples/sensors.py train pump/
    capanode models add pump/ --name pump
    python docs/examples/sensors.py watch pump --url ws://127.0.0.1:8080 --key sk-capa-…

The records are made up: temperature, pressure and vibration of a pump, ten times a second, and now
and then a fault. The model foretells each record from the 15 before it. How far off it was is the
answer: about 1 for a healthy pump, far more for one that does what it never did in training.
"""

import argparse
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

WINDOW = 16
SENSORS = 3
# Far beyond what the model is off on a healthy pump.
ALARM = 8.0


def records(count: int, *, faults: tuple[int, ...] = (), seed: int = 0) -> Any:
    """[count, 3]: each sensor swings in its own time; a fault shakes all of them for a second."""
    draw = np.random.default_rng(seed)
    times = np.arange(count)[:, None]
    periods, means, swings = (
        np.array(values) for values in ([50, 23, 7], [60.0, 4.0, 0.5], [5.0, 0.6, 0.2])
    )
    series = means + swings * np.sin(2 * np.pi * times / periods)
    series += 0.05 * swings * draw.standard_normal((count, SENSORS))
    for fault in faults:
        series[fault : fault + 10] += swings * draw.choice([-2.0, 2.0], (10, SENSORS))
    return series.astype(np.float32)


def train(folder: Path, *, epochs: int = 60) -> None:
    """Train, and write what a node serves: model.safetensors and config.json."""
    torch.manual_seed(0)
    series = torch.from_numpy(records(4_000))
    windows = series.unfold(0, WINDOW, 1).transpose(1, 2)
    before, now = windows[:, :-1].flatten(1), windows[:, -1]
    mean, scale = before.mean(0), before.std(0)
    sizes = [(WINDOW - 1) * SENSORS, 32, SENSORS]
    network = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(*sizes[1:]))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    # It learns in units of each sensor's swing, and its last layer is put back into real ones.
    unit, middle = now.std(0), now.mean(0)
    for _ in range(epochs):
        optimizer.zero_grad()
        error = network((before - mean) / scale) - (now - middle) / unit
        error.square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        last = network[2]
        last.weight.mul_(unit[:, None])
        last.bias.mul_(unit).add_(middle)
        off = (now - network((before - mean) / scale)).std(0)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"layers.{number}.{name}": parameter.detach().contiguous()
        for number, layer in enumerate((network[0], last))
        for name, parameter in layer.named_parameters()
    }
    tensors |= {"scaler.mean": mean, "scaler.scale": scale, "error.scale": off}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["TensorForecaster"],
        "inputs": [{"name": "record", "datatype": "FP32", "shape": [-1, SENSORS]}],
        "outputs": [{"name": "error", "datatype": "FP32", "shape": [-1, 1], "kind": "values"}],
        "layers": sizes,
        "activation": "tanh",
        "window_rows": WINDOW,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def watch(url: str, key: str, model: str, series: Any) -> Iterator[tuple[int, float]]:
    """The number and the error of each record, as the answers come."""
    from websockets.sync.client import connect

    headers = {"authorization": f"Bearer {key}"}
    with connect(f"{url}/v1/stream", additional_headers=headers) as socket:
        socket.send(json.dumps({"type": "open", "model": model}))

        def send() -> None:
            for row in series:
                tensor = {
                    "name": "record",
                    "datatype": "FP32",
                    "shape": [1, SENSORS],
                    "data": [round(float(number), 5) for number in row],
                }
                socket.send(json.dumps({"type": "record", "inputs": [tensor]}))
            socket.send(json.dumps({"type": "close"}))

        # Records go out while answers come in; a market that is slower than us makes us wait here.
        threading.Thread(target=send, daemon=True).start()
        for text in socket:
            message = json.loads(text)
            if message["type"] == "prediction":
                yield message["sequence"], message["outputs"][0]["data"][0]
            elif message["type"] == "error":
                raise SystemExit(message["error"]["message"])
            elif message["type"] == "closed":
                print(f"{message['records']} records, {message['cost_nano']} nano-credits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    watching = commands.add_parser("watch")
    watching.add_argument("model")
    watching.add_argument("--url", default="ws://127.0.0.1:8080")
    watching.add_argument("--key", required=True)
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder)
        return
    series = records(600, faults=(200, 450), seed=1)
    for number, error in watch(options.url, options.key, options.model, series):
        # Before there is a whole window, the first record stands for those that are missing.
        if error > ALARM and number >= WINDOW:
            print(f"record {number}: {error:.0f} times what a healthy pump is off")


if __name__ == "__main__":
    main()

"""Runs inside a sandbox: do the libraries that engines use work there, with their own threads?"""

# ruff: noqa: PLC0415 - imported one by one, after the limits are in force

import io
import json
from collections.abc import Callable
from pathlib import Path

from capanode.sandbox.inside import read_surroundings
from capanode.sandbox.limits import apply_limits


def check_torch(scratch: Path) -> None:
    import torch

    torch.set_num_threads(2)
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    assert float(product[0, 0]) == 512.0
    assert (
        torch.ones(256, 256, dtype=torch.bfloat16).matmul(torch.ones(256, 1).bfloat16())[0] == 256
    )


def check_safetensors(scratch: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    save_file({"weight": torch.arange(1_000)}, scratch / "model.safetensors")
    assert int(load_file(scratch / "model.safetensors")["weight"][999]) == 999


def check_tokenizers(scratch: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel()
    tokenizer.train_from_iterator(["low lower lowest"] * 50, BpeTrainer(vocab_size=60))
    tokenizer.save(str(scratch / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(scratch / "tokenizer.json"))
    assert len(loaded.encode_batch(["lower", "lowest"])) == 2


def check_pillow(scratch: Path) -> None:
    from PIL import Image

    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (64, 48), "red").save(file, kind)
        assert Image.open(io.BytesIO(file.getvalue())).resize((8, 8)).size == (8, 8)


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    checks: dict[str, Callable[[Path], None]] = {
        "torch": check_torch,
        "safetensors": check_safetensors,
        "tokenizers": check_tokenizers,
        "pillow": check_pillow,
    }
    outcome = {}
    for name, check in checks.items():
        try:
            check(surroundings.scratch_dir)
            outcome[name] = "works"
        except Exception as error:
            outcome[name] = repr(error)
    channel.sendall(json.dumps(outcome).encode() + b"\n")
    channel.recv(1)


if __name__ == "__main__":
    main()

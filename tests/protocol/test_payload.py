import hashlib
import struct
from typing import Any

import pytest

from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import SEED_MAX, ChatMessage, GenerationInput
from protocol.ids import sha256_digest
from protocol.messages import Task
from protocol.payload import (
    Chunk,
    EmbeddingInput,
    EmbeddingOutput,
    ImageInput,
    OutputDigest,
    derive_seed,
    tokens_digest,
)
from protocol.tasks import decode_input


def test_inputs_survive_the_wire() -> None:
    chat = GenerationInput(max_tokens=5, messages=(ChatMessage("user", "hi"),), stop=("\n",))
    assert decode_input(Task.CAUSAL_LM, encode(chat)) == chat
    texts = EmbeddingInput(("a", "b"))
    assert decode_input(Task.EMBEDDING, encode(texts)) == texts
    image = ImageInput(b"\xff\xd8")
    assert decode_input(Task.IMAGE_CLASSIFICATION, encode(image)) == image


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 5},
        {"max_tokens": 5, "prompt": "a", "prompt_tokens": (1,)},
        {"max_tokens": 0, "prompt": "a"},
        {"max_tokens": 5, "prompt": "a", "temperature": 2.1},
        {"max_tokens": 5, "prompt": "a", "top_p": 0.0},
        {"max_tokens": 5, "prompt": "a", "top_k": -1},
        {"max_tokens": 5, "prompt": "a", "seed": -1},
        {"max_tokens": 5, "prompt": "a", "stop": ("",)},
        {"max_tokens": 5, "prompt": "a", "stop": ("x",) * 9},
        {"max_tokens": 5, "prompt_tokens": (-1,)},
    ],
)
def test_parameters_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        GenerationInput(**fields)


def test_the_payload_of_another_task_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_input(Task.EMBEDDING, encode(ImageInput(b"x")))
    assert caught.value.code is Code.INVALID_INPUT


def test_vectors_have_the_size_that_they_claim() -> None:
    with pytest.raises(ValueError, match="size"):
        EmbeddingOutput(2, (b"\0" * 4,))


def test_a_seed_is_derived_from_the_request_alone_and_may_travel() -> None:
    first, second = sha256_digest(b"a request"), sha256_digest(b"another")
    assert derive_seed(first) == derive_seed(first) != derive_seed(second)
    assert 0 <= derive_seed(first) <= SEED_MAX
    GenerationInput(max_tokens=1, prompt="x", seed=derive_seed(second))


def test_an_inputs_digest_tells_its_texts_and_its_prefix_apart() -> None:
    digests = {
        tokens_digest(()),
        tokens_digest(((),)),
        tokens_digest(((1, 2),)),
        tokens_digest(((1, 2),), prefix_tokens=1),
        tokens_digest(((1,), (2,))),
        tokens_digest(((2, 1),)),
    }
    assert len(digests) == 6
    assert tokens_digest(((1, 2),)) == tokens_digest([[1, 2]])


def test_an_outputs_digest_begins_with_the_jobs_salt() -> None:
    salt = b"s" * 16
    digest = OutputDigest(salt)
    digest.add(Chunk((1, 2), "so"))
    digest.add(Chunk((3,), "on", b"data"))
    parts = (struct.pack(">3I", 1, 2, 3), b"soon", b"data")
    by_hand = hashlib.sha256(salt + b"".join(hashlib.sha256(part).digest() for part in parts))
    assert digest.hexdigest() == by_hand.hexdigest()

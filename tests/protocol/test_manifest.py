import json
from typing import Any

import pytest

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import sha256_digest
from protocol.manifest import (
    MANIFEST_BYTES_MAX,
    ModelFile,
    ModelManifest,
    decode_manifest,
    encode_manifest,
    manifest_digest,
)
from protocol.messages import Task

DIGEST = sha256_digest(b"content")
MANIFEST = ModelManifest(
    name="tiny",
    task=Task.CAUSAL_LM,
    architecture="llama",
    files=(ModelFile("model.safetensors", DIGEST, 9), ModelFile("a/config.json", DIGEST, 2)),
    dtype="bfloat16",
    quantization="bf16",
    context_tokens=2048,
    licence="Apache-2.0",
    source="file:tiny",
)


def test_a_manifest_survives_its_canonical_form() -> None:
    decoded = decode_manifest(encode_manifest(MANIFEST))
    assert set(decoded.files) == set(MANIFEST.files)
    assert manifest_digest(decoded) == manifest_digest(MANIFEST)


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    turned = ModelManifest(
        **{
            **{name: getattr(MANIFEST, name) for name in MANIFEST.__slots__},
            "files": tuple(reversed(MANIFEST.files)),
        }
    )
    assert manifest_digest(turned) == manifest_digest(MANIFEST)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../b", "a//b", "", "a\\b", "./a"])
def test_a_file_outside_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|folder"):
        ModelFile(path, DIGEST, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": "x"},
        {"task": "cooking"},
        {"name": ""},
        {"context_tokens": -1},
        {"extra": 1},
        {"files": [{"path": "a", "sha256": DIGEST, "bytes": 1}] * 2},
    ],
)
def test_a_malformed_manifest_is_refused(change: dict[str, Any]) -> None:
    plain = json.loads(encode_manifest(MANIFEST)) | change
    with pytest.raises(RemoteProtocolError) as caught:
        decode_manifest(json.dumps(plain).encode())
    assert caught.value.code is Code.MALFORMED


def test_a_giant_manifest_is_not_parsed() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_manifest(b" " * (MANIFEST_BYTES_MAX + 1))
    assert caught.value.code is Code.INPUT_TOO_LARGE

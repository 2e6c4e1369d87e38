"""Tiny models and what goes around them, for the tests of `capanode.models`."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import httpx
import numpy as np

from capanode.models.safetensors_file import Tensor, write_safetensors
from capanode.models.store import ModelStore
from protocol.ids import sha256_digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.messages import Task
from protocol.programs.sharing.model_folder import StoredModel

# What every decoder's config says.
DECODER_SIZES = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}
SMALL_FILES = {"config.json": b'{"model_type": "tiny"}', "model.safetensors": b"weights" * 100}


def manifest_of(files: Mapping[str, bytes], name: str = "tiny") -> ModelManifest:
    return ModelManifest(
        name=name,
        task=Task.CAUSAL_LM,
        architecture="LlamaForCausalLM",
        files=tuple(
            ModelFile(path, sha256_digest(content), len(content))
            for path, content in sorted(files.items())
        ),
        dtype="bf16",
        quantization="bf16",
        context_tokens=64,
        licence="Apache-2.0",
        source="file:tiny",
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def add_model(
    store: ModelStore, files: Mapping[str, bytes] = SMALL_FILES, name: str = "tiny"
) -> StoredModel:
    """Put a model of these files into the store, under its name."""
    manifest = manifest_of(files, name)
    with store.scratch() as scratch:
        write_files(scratch, files)
        return store.add(scratch, manifest, name=name)


def layout_files(architecture: str = "LlamaForCausalLM", **config: Any) -> dict[str, bytes]:
    """A model in the Hugging Face layout that the converter accepts."""
    settings = {"architectures": [architecture], **DECODER_SIZES, **config}
    return {
        "config.json": json.dumps(settings).encode(),
        "model.safetensors": safetensors_bytes({"a": np.ones((2, 3), np.float32)}),
        "tokenizer.json": b"{}",
    }


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]) -> bytes:
    header: dict[str, Any] = {}
    body = b""
    for name, tensor in tensors.items():
        end = len(body) + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), end],
        }
        body += tensor.tobytes()
    return raw_safetensors(header, body)


def raw_safetensors(header: Any, body: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


class MakesFile:
    """Pickles to something that makes a file when it is unpickled: a stand-in for an attack."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def hostile_pickle(path: Path) -> bytes:
    return pickle.dumps(MakesFile(path))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """A Hugging Face hub in memory that honours the parts of its HTTP interface that we use.

    Large files redirect to another host, as on the real one. `cuts` makes the next replies break
    off after so many bytes; `answers` gives statuses to send before the real answer; `on_chunk` is
    called before every 500 bytes of a file.
    """

    commit = "a" * 40

    def __init__(self, files: Mapping[str, bytes], repo: str = "owner/tiny") -> None:
        self.files = dict(files)
        self.repo = repo
        self.cdn = httpx.URL("https://cdn.example")
        self.cuts: list[int] = []
        self.answers: list[httpx.Response] = []
        self.honours_ranges = True
        self.on_chunk: Callable[[], None] = lambda: None
        self._lock = Lock()
        self.requests: list[httpx.Request] = []
        self.listing: Any = {
            "sha": self.commit,
            "cardData": {"license": "mit"},
            "siblings": [self._sibling(path, content) for path, content in files.items()],
        }

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        sibling = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
        if path.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            return {**sibling, "lfs": {"sha256": digest, "size": len(content), "pointerSize": 1}}
        return sibling

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.answers:
            return self.answers.pop(0)
        path = request.url.path
        if path.startswith(f"/api/models/{self.repo}/revision/"):
            return httpx.Response(200, json=self.listing)
        name = path.removeprefix(f"/{self.repo}/resolve/{self.commit}/")
        if name not in self.files:
            return httpx.Response(404)
        if name.endswith(".safetensors") and request.url.host != self.cdn.host:
            return httpx.Response(302, headers={"location": str(self.cdn.join(path))})
        return self._send(request, self.files[name])

    def _send(self, request: httpx.Request, content: bytes) -> httpx.Response:
        wanted = request.headers.get("range")
        status, headers = 200, {}
        if wanted and self.honours_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(content) - 1) + 1
            if start >= len(content):
                return httpx.Response(416)
            status = 206
            headers = {"content-range": f"bytes {start}-{end - 1}/{len(content)}"}
            content = content[start:end]
        with self._lock:
            cut = self.cuts.pop(0) if self.cuts else None
        headers["content-length"] = str(len(content))
        return httpx.Response(status, headers=headers, stream=_Cut(content, cut, self.on_chunk))


class _Cut(httpx.SyncByteStream):
    """The content, or its beginning and then a broken connection."""

    def __init__(self, content: bytes, cut: int | None, on_chunk: Callable[[], None]) -> None:
        self._content = content[:cut]
        self._is_cut = cut is not None
        self._on_chunk = on_chunk

    def __iter__(self) -> Any:
        for start in range(0, len(self._content), 500):
            self._on_chunk()
            yield self._content[start : start + 500]
        if self._is_cut:
            raise httpx.ReadError("the connection broke")


def write_tiny_safetensors(path: Path, tensors: list[Tensor]) -> None:
    write_safetensors(path, tensors, on_bytes=lambda done, total: None)

"""Model identity is content: a manifest lists every file of a model, its digest names the model.

Offers advertise the digest, jobs pin it, receipts repeat it. The canonical form is JSON with sorted
keys and no spaces, so that any language computes the same digest.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, is_digest, sha256_digest
from protocol.limits import NAME_CHARS_MAX, TOKENS_MAX
from protocol.messages import Task

# A sharded 400B model has a few hundred files.
FILES_MAX = 2_048
MANIFEST_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file: where it lies in the model's folder, its content and its size."""

    path: str
    sha256: Digest
    bytes: int

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not self.path or len(self.path) > 256:
            raise ValueError(f"{self.path[:64]!r} does not stay inside the model's folder")
        if str(path) != self.path or "\\" in self.path or "\0" in self.path:
            raise ValueError(f"{self.path[:64]!r} is not a plain relative path")
        if not is_digest(self.sha256) or self.bytes < 0:
            raise ValueError(f"{self.path[:64]!r} has no valid digest or size")


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """What a model is, apart from what it is called in a shop window."""

    name: str
    task: Task
    architecture: str
    files: tuple[ModelFile, ...]
    dtype: str
    quantization: str
    context_tokens: int
    licence: str
    source: str

    def __post_init__(self) -> None:
        for text in (self.name, self.architecture, self.dtype, self.quantization, self.licence):
            if not 0 < len(text) <= NAME_CHARS_MAX:
                raise ValueError("a text in the manifest is empty or too long")
        if not 0 < len(self.files) <= FILES_MAX:
            raise ValueError("the manifest lists no files, or too many")
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("the manifest lists a file twice")
        if not 0 <= self.context_tokens <= TOKENS_MAX:
            raise ValueError("the context is out of range")


def encode_manifest(manifest: ModelManifest) -> bytes:
    """The canonical bytes, with the files in order of their paths."""
    plain = asdict(manifest)
    plain["files"] = sorted(plain["files"], key=lambda file: file["path"])
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode_manifest(data: bytes) -> ModelManifest:
    """Raises RemoteProtocolError (MALFORMED, INPUT_TOO_LARGE)."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise RemoteProtocolError("the manifest is too large", code=Code.INPUT_TOO_LARGE)
    try:
        plain = json.loads(data)
        files = tuple(ModelFile(**file) for file in plain.pop("files"))
        return ModelManifest(**{**plain, "task": Task(plain["task"])}, files=files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a manifest: {error}", code=Code.MALFORMED) from None


def manifest_digest(manifest: ModelManifest) -> Digest:
    return sha256_digest(encode_manifest(manifest))

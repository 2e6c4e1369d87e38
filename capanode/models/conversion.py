"""Starts the converter process and watches over it; never parses a model itself."""

import errno
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import capanode
from capanode.models.convert import FORMATS
from capanode.models.errors import ConversionError, StoreFullError
from capanode.models.progress import Progress, ProgressCallback
from protocol.limits import NAME_CHARS_MAX, TOKENS_MAX
from protocol.messages import Task

# SmolLM2-135M converts in 4 s; the bound is for a parser that hangs, on a slow disk.
CONVERSION_TIMEOUT_S = 900.0

_LINE_BYTES_MAX = 16 * 1024
_STDERR_BYTES_SHOWN = 2_000
_POLL_S = 0.2

# It confines itself; -P keeps files in the folder it starts in from being imported as modules.
CONVERTER = (sys.executable, "-P", "-s", "-m", "capanode.models.convert")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the converter says that it made. Untrusted, as it parsed untrusted bytes; the catalog's
    pins do not depend on it."""

    task: Task
    architecture: str
    dtype: str
    quantization: str
    context_tokens: int
    licence: str


def convert_model(
    format_name: str,
    source: Path,
    target: Path,
    *,
    progress: ProgressCallback,
    program: Sequence[str] = CONVERTER,
    timeout_s: float = CONVERSION_TIMEOUT_S,
) -> Conversion:
    """Convert the files in `source` to a model in `target`, both absolute, on one file system.

    Raises ConversionError if the converter refuses, crashes or hangs; StoreFullError.
    """
    if format_name not in FORMATS:
        raise ConversionError(f"no converter for {format_name!r}: there is {sorted(FORMATS)}")
    command = [*program, format_name, str(source), str(target)]
    stderr_path = target.with_name(f"{target.name}.stderr")
    with stderr_path.open("w+b") as stderr:
        with subprocess.Popen(  # noqa: S603 - our own module, paths that we chose
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            cwd="/",
        ) as process:
            try:
                messages = _read_messages(process, progress, time.monotonic() + timeout_s)
            finally:
                process.kill()
        stderr.seek(0)
        complaint = stderr.read(_STDERR_BYTES_SHOWN).decode(errors="replace")
    return _result(messages, process.returncode, complaint)


def _environment() -> dict[str, str]:
    """Nothing of ours: a variable can turn torch's safe loading off, and tokens live there."""
    return {
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(capanode.__file__).parent.parent),
    }


def _read_messages(
    process: subprocess.Popen[bytes], progress: ProgressCallback, deadline_s: float
) -> dict[str, Any]:
    """Pass progress on until the converter is done; returns its last word, {} if there is none."""
    assert process.stdout is not None
    last: dict[str, Any] = {}
    for line in _lines(process.stdout, deadline_s):
        message = _parse_line(line)
        if "done" in message:
            progress(Progress("convert", int(message["done"]), int(message["total"])))
        else:
            last = message
    remaining_s = max(0.0, deadline_s - time.monotonic())
    try:
        process.wait(remaining_s)
    except subprocess.TimeoutExpired:
        raise ConversionError("the converter did not exit in time") from None
    return last


def _lines(stdout: IO[bytes], deadline_s: float) -> Iterator[bytes]:
    """Lines as they come. Raises ConversionError at the deadline or on an endless line."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() >= deadline_s:
                raise ConversionError(
                    "the converter was stopped because it took too long: the file may be damaged, "
                    "or this machine too busy"
                )
            if not selector.select(_POLL_S):
                continue
            chunk = os.read(stdout.fileno(), _LINE_BYTES_MAX)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            yield from lines
            if len(pending) > _LINE_BYTES_MAX:
                raise ConversionError("the converter talks nonsense")


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
        if "done" in message:
            return {"done": int(message["done"]), "total": int(message["total"])}
        if isinstance(message.get("refused"), str) or isinstance(message.get("result"), dict):
            return dict(message)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ConversionError("the converter talks nonsense")


def _result(message: dict[str, Any], return_code: int, complaint: str) -> Conversion:
    refused = message.get("refused")
    if refused is not None:
        if any(f"[Errno {number}]" in refused for number in (errno.ENOSPC, errno.EDQUOT)):
            raise StoreFullError(f"the disk filled up while converting ({refused})")
        raise ConversionError(f"the model was refused: {refused[:500]}")
    if return_code != 0 or "result" not in message:
        last_line = next(iter(complaint.strip().splitlines()[-1:]), "it said nothing")
        raise ConversionError(
            f"the converter ended with status {return_code}: {last_line[:300]} (a negative status "
            "is a signal; the limits on its memory and time are in capanode/models/convert.py)"
        )
    result = message["result"]
    try:
        return Conversion(
            task=Task(result["task"]),
            architecture=_short(result["architecture"]),
            dtype=_short(result["dtype"]),
            quantization=_short(result["quantization"]),
            context_tokens=min(max(0, int(result["context_tokens"])), TOKENS_MAX),
            licence=_short(result["licence"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ConversionError(f"the converter's result makes no sense: {error!r}") from None


def _short(text: Any) -> str:
    """As much of a text as a manifest takes."""
    return str(text).strip()[:NAME_CHARS_MAX] or "unknown"

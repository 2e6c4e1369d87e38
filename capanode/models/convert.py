"""The converter process: `python -m capanode.models.convert FORMAT SOURCE TARGET`.

It reads files that strangers made with parsers that trust them, so it runs apart from the node,
with an empty environment, and confines itself before it imports a parser: it has no network, starts
no program, and opens nothing but Python, the source and the target. Its result is believed only as
far as the digests of the files that it wrote. `capanode.models.conversion` starts it.

Standard output carries JSON lines: {"done": bytes, "total": bytes} while it works, then one
{"result": {...}} or {"refused": "why"}.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from capanode.sandbox.kernel import load_filter
from capanode.sandbox.landlock import VERSION_MIN, landlock_version, restrict_files
from capanode.sandbox.seccomp import build_filter, is_supported
from capanode.sandbox.view import READABLE_DEVICES, READABLE_PROC, own_packages, plan_view

# Converting SmolLM2-135M peaks at 0.7 GB resident. Private memory is what is limited tightly: a
# CUDA build of torch maps many gigabytes of libraries without using them.
DATA_BYTES = 4 * 1024**3
ADDRESS_SPACE_BYTES = 64 * 1024**3
# The largest single file that a conversion may write.
FILE_BYTES = 16 * 1024**3
CPU_S = 900

_REPORT_EVERY_S = 0.1
_REASON_CHARS_MAX = 500
_CONVERTERS = {
    "gguf": ("capanode.models.convert_gguf", "convert_gguf"),
    "gguf-codes": ("capanode.models.convert_gguf", "convert_gguf_codes"),
    "efficientnet": ("capanode.models.convert_efficientnet", "convert_efficientnet"),
    "layout": ("capanode.models.convert_layout", "convert_layout"),
}
FORMATS = frozenset(_CONVERTERS)


class _Reporter:
    """Writes progress lines, at most ten a second."""

    def __init__(self) -> None:
        self._next_at_s = 0.0

    def report(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_at_s or done == total:
            self._next_at_s = now_s + _REPORT_EVERY_S
            _emit({"done": done, "total": total})


def main(arguments: list[str]) -> int:
    """0 when the target folder is complete; 1 when the input was refused."""
    format_name, source, target = arguments
    _limit_self()
    _confine_self(Path(source), Path(target))
    module_name, function_name = _CONVERTERS[format_name]
    convert = getattr(importlib.import_module(module_name), function_name)
    try:
        result = convert(Path(source), Path(target), on_bytes=_Reporter().report)
    except Exception as error:
        # This is the whole program's boundary, and foreign parsers raise what they like on hostile
        # bytes. The first line tells the user; the traceback goes where the node's log can have it.
        traceback.print_exc()
        first_line = str(error).split("\n", 1)[0]
        _emit({"refused": f"{type(error).__name__}: {first_line}"[:_REASON_CHARS_MAX]})
        return 1
    _emit({"result": result})
    return 0


def _limit_self() -> None:
    for kind, limit in (
        (resource.RLIMIT_DATA, DATA_BYTES),
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _confine_self(source: Path, target: Path) -> None:
    """Landlock for files, where the kernel has it, and the worker's system-call filter for the
    rest. Not a namespace: files are made for the store's owner."""
    if not is_supported():
        return
    if landlock_version() >= VERSION_MIN:
        view = plan_view(own_packages(), None)
        # The source is a copy of its own; what may be linked into the target must be writable too.
        restrict_files(
            readable=(*view.sources, *READABLE_PROC, *READABLE_DEVICES),
            writable=(str(source), str(target)),
            devices=("/dev/null",),
        )
    load_filter(build_filter(gpu=False, own_pid=os.getpid()))


def _emit(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
